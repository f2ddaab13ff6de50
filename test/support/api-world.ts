// The control plane's API in this process, over real sockets and the real store, with agents that are the test's own
// (fake-agent.ts). For what lies between HTTP and the link; the whole system is stack.ts.
import { generateKeyPairSync, createHash } from "node:crypto";
import {
  ConnectorError,
  artifactPathSchema,
  jsonBody,
  keySigner,
  newId,
  ndjsonLine,
  systemClock,
  type Clock,
  type PoolId,
  type ReplicaId,
} from "@sallyport/protocol";
import { pino } from "pino";
import { Registry } from "prom-client";
import { Authenticator, newApiToken } from "../../cloud/auth/index.ts";
import { makeDispatch, type Dispatch } from "../../cloud/dispatch/index.ts";
import type { RoutePlugin } from "../../cloud/http/routes.ts";
import { artifactRoutes } from "../../cloud/http/routes/artifacts.ts";
import { commandRoutes } from "../../cloud/http/routes/commands.ts";
import { deploymentTrafficRoutes } from "../../cloud/http/routes/deployment-traffic.ts";
import { deploymentRoutes } from "../../cloud/http/routes/deployments.ts";
import { runRoutes } from "../../cloud/http/routes/runs.ts";
import { makeApiServer } from "../../cloud/http/server.ts";
import { SessionRegistry } from "../../cloud/link/session-registry.ts";
import type { Scope, Store } from "../../cloud/store/index.ts";
import { TestApi } from "./api.ts";
import { FakeAgent, answer } from "./fake-agent.ts";
import type { Teardown } from "./launcher.ts";
import { storePlace } from "./store.ts";

export interface ApiWorld {
  store: Store;
  scope: Scope;
  dispatch: Dispatch;
  pool: { id: PoolId; name: string };
  port: number;
  url: string;
  token: string;
  api: TestApi;
  log: string[];
  /** An agent that has joined; of pool `vpc` unless another is named, which is made when there is none. */
  replica(name: string, pool?: string): Promise<FakeAgent>;
}

export async function apiWorld(
  t: Teardown,
  more: (deps: {
    store: Store;
    dispatch: Dispatch;
    sessions: SessionRegistry;
    authenticator: Authenticator;
  }) => RoutePlugin[] = () => [],
  options: {
    /** The built page, served beside the API. Default: none. */
    pageFolder?: string;
    /** Of the control plane; the agents' is the system's. Default: the system's. */
    clock?: Clock;
  } = {},
): Promise<ApiWorld> {
  const clock = options.clock ?? systemClock;
  const key = generateKeyPairSync("ed25519");
  const keys = new Map([["test", key.publicKey]]);
  const store = await (await storePlace(t)).open();
  const admin = await store.ensureAdmin("admin", "main");
  const scope: Scope = { workspace: admin.workspace, actor: { id: admin.id, name: admin.name, via: "token" } };
  const pool = await store.ensurePool(scope, "vpc", clock.now());
  const sessions = new SessionRegistry(clock);
  const lines: string[] = [];
  const log = pino({ level: "info" }, { write: (line: string) => void lines.push(line) });
  const dispatch = makeDispatch({
    store,
    sessions,
    clock,
    signer: keySigner("test", key.privateKey),
    incarnation: await store.incarnation(),
    log,
  });
  dispatch.start();
  const authenticator = new Authenticator(store, clock);
  const server = await makeApiServer({
    store,
    authenticator,
    clock,
    log,
    registry: new Registry(),
    version: "test",
    tls: null,
    secureCookies: false,
    hosts: [],
    pageFolder: options.pageFolder ?? "/nonexistent",
    ready: () => true,
    routes: [
      artifactRoutes({ store, dispatch }),
      commandRoutes({ store, dispatch }),
      runRoutes({ store, dispatch }),
      deploymentRoutes({ store, dispatch }),
      deploymentTrafficRoutes({ store, dispatch }),
      ...more({ store, dispatch, sessions, authenticator }),
    ],
  });
  const port = await server.listen("127.0.0.1", 0);
  const made = newApiToken();
  await store.addToken(scope, {
    id: "tok_test",
    user: admin.id,
    label: "test",
    hint: made.hint,
    hash: made.hash,
    createdAt: clock.now(),
    expiresAt: clock.now() + 90 * 24 * 3600_000,
  });
  const url = `http://127.0.0.1:${port}`;
  const api = new TestApi(url);
  api.token = made.token;
  const agents: FakeAgent[] = [];
  t.teardown(async () => {
    // Offers that an agent of the test leaves unanswered end with its link.
    const stopped = dispatch.stop();
    for (const agent of agents) await agent.cut();
    await stopped;
    await server.close(0);
    await store.close();
  });
  return {
    store,
    scope,
    dispatch,
    pool,
    port,
    url,
    token: made.token,
    api,
    log: lines,
    async replica(name, poolName = pool.name) {
      const of = await store.ensurePool(scope, poolName, clock.now());
      const enrollment = await store.addEnrollment(scope, {
        id: newId("enrollment"),
        pool: of.id,
        name,
        secretHash: name,
        createdAt: Date.now(),
        expiresAt: Date.now() + 60_000,
      });
      const publicKey = generateKeyPairSync("ed25519").publicKey.export({ format: "jwk" }).x!;
      const redeemed = await store.redeemEnrollment({
        id: enrollment.id,
        secretHash: name,
        publicKey,
        fingerprint: name,
        nameHint: null,
        remoteAddress: null,
        now: Date.now(),
      });
      if ("refused" in redeemed) throw new Error(redeemed.refused);
      const agent = new FakeAgent(
        sessions,
        { workspace: scope.workspace, pool: of.id, replica: redeemed.replica.id as ReplicaId },
        keys,
      );
      agents.push(agent);
      return agent;
    },
  };
}

export interface Held {
  bytes: Buffer;
  version: string;
  mediaType: string;
}

/** Gives an agent a store in memory. `read` may cut: it is called before each chunk leaves. */
export function serveLake(
  agent: FakeAgent,
  files: Map<string, Held>,
  options: { chunkBytes?: number; read?: (sentBytes: number) => Promise<void> | void } = {},
): void {
  const { chunkBytes = 16 * 1024 } = options;
  const modifiedAt = Date.UTC(2026, 1, 3);
  const find = (path: string): Held => {
    artifactPathSchema.parse(path);
    if (path.split("/").some((part) => part === "" || part === "." || part === ".."))
      throw new ConnectorError("PATH_INVALID", `The path ${path} has a segment that is not allowed.`, {
        fix: "Use a plain relative path.",
      });
    const held = files.get(path);
    if (held === undefined)
      throw new ConnectorError("ARTIFACT_NOT_FOUND", `Nothing is at ${path} in store lake.`, {
        fix: "List the store.",
      });
    return held;
  };
  const matches = (held: Held | undefined, ifMatch: string | undefined) => {
    if (ifMatch !== undefined && held?.version !== ifMatch)
      throw new ConnectorError("PRECONDITION_FAILED", "Another version is there.");
  };
  const entry = (path: string, held: Held) => ({
    name: path.split("/").at(-1)!,
    path,
    kind: "file",
    sizeBytes: held.bytes.length,
    modifiedAt,
    version: held.version,
    mediaType: held.mediaType,
  });
  type Input = {
    path: string;
    range?: { start: number; end?: number };
    suffixBytes?: number;
    ifMatch?: string;
    ifNoneMatch?: string;
    digest?: string | boolean;
    sizeBytes?: number | null;
    mediaType?: string;
  };
  const on = (kind: string, handle: (input: Input, stream: Parameters<typeof answer>[0]) => Promise<void> | void) =>
    agent.handlers.set(kind, ({ input, stream }) => handle(input, stream));

  on("artifact.list", ({ path }, stream) =>
    answer(stream, {
      entries: [...files].filter(([name]) => name.startsWith(path)).map(([name, held]) => entry(name, held)),
      nextCursor: null,
    }),
  );
  on("artifact.stat", ({ path }, stream) => answer(stream, { ...entry(path, find(path)), digest: null }));
  on("artifact.read", async ({ path, range, suffixBytes, ifMatch }, stream) => {
    const held = find(path);
    matches(held, ifMatch);
    const total = held.bytes.length;
    const start = suffixBytes !== undefined ? Math.max(0, total - suffixBytes) : (range?.start ?? 0);
    if (start > total) throw new ConnectorError("RANGE_INVALID", `The range begins beyond the ${total} bytes.`);
    const bytes = held.bytes.subarray(start, range?.end === undefined ? total : Math.min(total, range.end + 1));
    stream.respond({
      type: "result",
      body: jsonBody({
        start,
        lengthBytes: bytes.length,
        totalBytes: total,
        version: held.version,
        mediaType: held.mediaType,
        modifiedAt,
      }),
    });
    for (let at = 0; at < bytes.length; at += chunkBytes) {
      await options.read?.(start + at);
      await stream.write(Buffer.from(bytes.subarray(at, at + chunkBytes)));
    }
    await stream.end();
  });
  // One that forgets an upload with its stream, as an agent does that was restarted.
  on("artifact.write", async ({ path, ifMatch, ifNoneMatch, digest, sizeBytes, mediaType }, stream) => {
    if (path.includes("forbidden"))
      throw new ConnectorError("POLICY_DENIED", "The policy grants no write there.", { fix: "Ask the customer." });
    if (ifNoneMatch === "*" && files.has(path)) throw new ConnectorError("ARTIFACT_EXISTS", `${path} exists.`);
    matches(files.get(path), ifMatch);
    const chunks: Buffer[] = [];
    let takenBytes = 0;
    stream.respond({ type: "taking", offset: 0 });
    for await (const chunk of stream.bytes) {
      chunks.push(chunk);
      takenBytes += chunk.length;
      if (path.includes("forget")) await stream.write(ndjsonLine({ type: "taken", bytes: takenBytes }));
    }
    const bytes = Buffer.concat(chunks);
    const actual = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    if (digest !== undefined && digest !== actual)
      throw new ConnectorError("DIGEST_MISMATCH", "The bytes have another digest.");
    if (sizeBytes !== null && sizeBytes !== bytes.length)
      throw new ConnectorError("DIGEST_MISMATCH", "The bytes have another length.");
    const version = `v${actual.slice(7, 15)} "x"`;
    files.set(path, { bytes, version, mediaType: mediaType ?? "application/octet-stream" });
    const result = jsonBody({ path, sizeBytes: bytes.length, version, digest: actual });
    await stream.write(ndjsonLine({ type: "result", body: result }));
    await stream.end();
  });
  on("artifact.delete", ({ path, ifMatch }, stream) => {
    matches(find(path), ifMatch);
    files.delete(path);
    answer(stream, { path, deleted: true });
  });
}

/** NDJSON records of a `run.logs` answer. */
export const logLine = (seq: number, text: string): Buffer =>
  ndjsonLine({ seq, ts: 1, stream: "stdout", body: { encoding: "utf8", enc: "none", kid: null, data: text } });
