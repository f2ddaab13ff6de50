// The port of the router: one listener in the agent's network, one endpoint and one key for each deployment.
import type { ConnectorError, DeploymentId, Rollup } from "@sallyport/protocol";

/** Where a replica answers. A socket is guarded by its folder's rights, an address by the replica's token. */
export type ReplicaAddress = { kind: "socket"; path: string } | { kind: "tcp"; host: string; port: number };

export interface ReplicaTarget {
  /** `r3.0` */
  name: string;
  address: ReplicaAddress;
  /** Sent to the replica as a bearer token. */
  token: string;
}

export interface Route {
  deployment: DeploymentId;
  /** First segment of the endpoint's path: `<base>/<name>/v2/...`. */
  name: string;
  /** What a client shows as bearer token. */
  key: string;
  /** Those that get new requests. One that is taken out ends what it has. */
  replicas: readonly ReplicaTarget[];
  /** Requests wait so long for a replica when there is none, then are answered 503. */
  holdMs: number;
}

export interface RoutedRequest {
  method: string;
  /** Below the endpoint: `/v2/...`. */
  path: string;
  headers: Record<string, string>;
  body: Buffer | null;
  timeoutMs: number;
  signal?: AbortSignal;
}

export interface RoutedAnswer {
  status: number;
  mediaType: string;
  replica: string;
  tookMs: number;
  body: AsyncIterable<Buffer>;
}

export interface Router {
  /** Begins to listen. A port that is taken is no reason to fail: it is tried again, and `problem` says so. */
  start(): Promise<void>;
  /** PORT_TAKEN or the like; null while it listens. */
  readonly problem: ConnectorError | null;
  /** Called when `problem` changes. */
  onChange(listener: () => void): void;
  /** Base of a deployment's endpoint, as clients in the network reach it: `http://host:port/<name>`. */
  endpoint(name: string): string;
  /** The whole of what is to be; told again at every change. */
  set(route: Route): void;
  remove(deployment: DeploymentId): void;
  /** Requests under way at a replica, also after it was taken out of its route. */
  busy(deployment: DeploymentId, replica: string): number;
  /** Resolves when nothing is under way at it any more, or after `withinMs`. */
  drained(deployment: DeploymentId, replica: string, withinMs: number): Promise<void>;
  /** The same way as a client's request, balancing and retry included, without key and listener. */
  request(deployment: DeploymentId, request: RoutedRequest): Promise<RoutedAnswer>;
  /** Asks one replica, past all balancing: for health. `null`: no connection, or no answer in time. */
  probe(target: ReplicaTarget, path: string, timeoutMs: number): Promise<{ status: number; body: string } | null>;
  /** A replica that a request could not reach: it should be probed now. */
  onSuspect(listener: (deployment: DeploymentId, replica: string) => void): void;
  /** The last whole minute; null = none yet. */
  rollup(deployment: DeploymentId): Rollup | null;
  /** Called when a minute is over. */
  onRollup(listener: () => void): void;
  /** Takes no new connections, ends what is under way within `graceMs`. */
  close(graceMs: number): Promise<void>;
}
