// An agent's end of the link with an empty rest: what link tests start.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  ConnectorError,
  newId,
  systemClock,
  type AgentStatus,
  type Clock,
  type EnrolmentSecret,
  type LinkStream,
} from "@sallyport/protocol";
import {
  IdentityStore,
  WsLink,
  isNatsUrl,
  type AgentSession,
  type HelloSource,
  type LinkEvent,
  type LinkStateKind,
  type NatsRoute,
  type WsLinkOptions,
} from "../../../agent/link/index.ts";
import { STRAIGHT } from "../../../agent/link/network.ts";
import { agentStatus } from "../../support/agent-status.ts";

export const sampleStatus = (labels: Record<string, string> = {}): AgentStatus =>
  agentStatus({ at: Date.now(), labels, policyDigest: "0".repeat(64) });

export interface AgentEnd {
  readonly link: WsLink;
  readonly events: LinkEvent[];
  readonly stateDirectory: string;
  readonly journal: string;
  /** Streams that nobody else handles land here. */
  readonly streams: LinkStream[];
  onStream: ((stream: LinkStream, session: AgentSession) => void) | null;
  setLabels(labels: Record<string, string>): void;
  /** Resolves when the link is in the state, at once when it is. */
  reached(state: LinkStateKind): Promise<void>;
  /** The next session, or the present one. */
  online(): Promise<AgentSession>;
  /** Resolves with the reason of the next failed attempt or ended link. */
  failed(): Promise<ConnectorError>;
  stop(): void;
}

/** Of an address as a control plane's end gives it: nats://USER:PASSWORD@HOST:PORT/PREFIX. */
export function natsRoute(url: string, name: string): NatsRoute {
  const { username: user, password, pathname } = new URL(url);
  return {
    url,
    ca: () => null,
    prefix: pathname.slice(1),
    name,
    network: STRAIGHT,
    login: async () => ({ kind: "password", user, password }),
  };
}

export interface AgentEndOptions {
  /** Null: the one of its identity. */
  readonly url: string | null;
  readonly enrolment?: EnrolmentSecret;
  readonly stateDirectory?: string;
  readonly clock?: Clock;
  readonly random?: () => number;
  readonly mac?: boolean;
  readonly ca?: string;
  readonly network?: WsLinkOptions["network"];
  readonly deadMs?: number;
  readonly stableMs?: number;
}

export function startAgentEnd(options: AgentEndOptions): AgentEnd {
  const stateDirectory = options.stateDirectory ?? mkdtempSync(join(tmpdir(), "sallyport-link-"));
  const journal = newId("journal");
  let labels: Record<string, string> = {};
  let statusListener: (() => void) | null = null;
  const hello: HelloSource = {
    journal: () => ({ id: journal, dispatchSequence: {}, startCounter: 1 }),
    generations: () => ({}),
    status: () => sampleStatus(labels),
    onStatusChange: (listener) => {
      statusListener = listener;
    },
  };
  const identity = new IdentityStore(stateDirectory);
  const url = options.url ?? identity.load()?.identity.cloudUrl ?? null;
  const link = new WsLink({
    cloudUrl: options.url,
    nats: url !== null && isNatsUrl(url) ? natsRoute(url, "test-agent") : null,
    identity,
    enrolment: options.enrolment ?? null,
    nameHint: "test-agent",
    ca: options.ca ?? null,
    ...(options.network === undefined ? {} : { network: options.network }),
    mac: options.mac ?? true,
    version: "0.1.0",
    hello,
    clock: options.clock ?? systemClock,
    random: options.random ?? (() => 0.5),
    ...(options.deadMs === undefined ? {} : { deadMs: options.deadMs }),
    ...(options.stableMs === undefined ? {} : { stableMs: options.stableMs }),
  });
  const events: LinkEvent[] = [];
  const watchers = new Set<(event: LinkEvent) => void>();
  link.observe((event) => {
    events.push(event);
    for (const watcher of [...watchers]) watcher(event);
  });
  const once = <T>(pick: (event: LinkEvent) => T | undefined): Promise<T> =>
    new Promise((resolve) => {
      const watcher = (event: LinkEvent) => {
        const value = pick(event);
        if (value === undefined) return;
        watchers.delete(watcher);
        resolve(value);
      };
      watchers.add(watcher);
    });
  const end: AgentEnd = {
    link,
    events,
    stateDirectory,
    journal,
    streams: [],
    onStream: null,
    setLabels(next) {
      labels = next;
      statusListener?.();
    },
    async reached(state) {
      if (link.state !== state)
        await once((event) => (event.type === "state" && event.to === state ? true : undefined));
    },
    online: () =>
      link.session !== null
        ? Promise.resolve(link.session)
        : once((event) => (event.type === "online" ? event.session : undefined)),
    failed: () => once((event) => (event.type === "state" && event.error !== null ? event.error : undefined)),
    stop() {
      link.abort(new ConnectorError("CANCELLED", "The test is over."));
      if (options.stateDirectory === undefined) rmSync(stateDirectory, { recursive: true, force: true });
    },
  };
  link.onStream((stream, session) => {
    if (end.onStream !== null) end.onStream(stream, session);
    else end.streams.push(stream);
  });
  link.start();
  return end;
}
