// The link, with what listens to it: the runner takes its streams, the outbox sends reports, the log says what became
// of it, and the journal is compacted by the time that both clocks allow.
import { randomInt } from "node:crypto";
import { hostname } from "node:os";
import { ConnectorError, keyChangeSchema, toConnectorError, type Clock, type LinkStream } from "@sallyport/protocol";
import type { CommandRunner } from "../commands/runner.ts";
import { compactionTime } from "../journal/compaction-time.ts";
import {
  changeKey,
  isNatsUrl,
  makeNatsRoute,
  makeNetwork,
  WsLink,
  type AgentSession,
  type IdentityStore,
  type LinkEvent,
} from "../link/index.ts";
import type { AgentContext } from "./context.ts";
import type { Membership } from "./membership.ts";
import type { Parts } from "./parts.ts";
import type { OpenState } from "./state.ts";
import { makeStatus } from "./status.ts";

const COMPACT_MS = 3600_000;
const DAY_MS = 24 * 3600_000;

export interface WatchedLink {
  readonly link: WsLink;
  /** Since when the link is as it is, and what went wrong last. */
  readonly watch: LinkWatch;
  /** This machine's clock minus the control plane's; null without a session. */
  skewMs(): number | null;
}

/** Not dialling yet: `link.start()` does. */
export function makeLink(
  context: AgentContext,
  { identity, enrolment, cloudUrl, ca }: Membership,
  state: OpenState,
  parts: Parts,
): WatchedLink {
  const { clock, version } = context;
  const { journal } = state;
  const { changes, deployments, runner } = parts;
  const { deadAfterMs, stableAfterMs } = context.compiled.config.link;
  let link: WsLink | null = null;
  const skewMs = () => {
    const session = link?.session ?? null;
    // What the cloud said was half a round trip old when it came.
    return session === null ? null : clock.now() - session.cloudNow() - (session.rttMs ?? 0) / 2;
  };
  link = new WsLink({
    deadMs: deadAfterMs,
    stableMs: stableAfterMs,
    cloudUrl,
    identity,
    enrolment,
    nameHint: hostname().slice(0, 63),
    ca,
    ...waysOf(context, parts, cloudUrl),
    mac: true,
    version,
    hello: {
      journal: () => ({
        id: journal.id,
        startCounter: journal.startCounter,
        dispatchSequence: runner.dispatchSequences,
      }),
      generations: () => deployments.generations(),
      status: makeStatus(context, parts, skewMs),
      onStatusChange: (listener) => changes.on(listener),
    },
    clock,
    random: () => randomInt(2 ** 32) / 2 ** 32,
  });
  const watch = new LinkWatch(clock);
  const keys = new KeyChanges(context, identity);
  link.onStream((stream, session) => takeStream(runner, keys, stream, session));
  link.observe((event) => {
    if (event.type === "online") {
      goOnline(context, event.session, state, parts);
      keys.look(event.session);
    } else if (event.type === "state") {
      watch.note(event);
      logMove(context, event);
    }
  });
  return { link, watch, skewMs };
}

/** How to get out, and over which NATS network when `cloudUrl` is one of its servers. */
function waysOf({ compiled, environment, redactor }: AgentContext, { connections }: Parts, cloudUrl: string) {
  const { link } = compiled.config;
  const helpers = {
    resolveSecret: async (text: string, signal: AbortSignal) =>
      (await connections.secrets.resolve(text, signal)).reveal(),
    hide: (secret: string) => redactor.add(secret),
  };
  const network = makeNetwork({ ...link, ...helpers, environment });
  const nats = isNatsUrl(cloudUrl) ? makeNatsRoute({ url: cloudUrl, nats: link.nats, network, ...helpers }) : null;
  return { network, nats };
}

export class LinkWatch {
  readonly #clock: Clock;
  #since: number;
  #problem: string | null = null;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#since = clock.now();
  }

  get since(): number {
    return this.#since;
  }
  get problem(): string | null {
    return this.#problem;
  }

  note(event: Extract<LinkEvent, { type: "state" }>): void {
    this.#since = this.#clock.now();
    this.#problem = event.error?.message ?? null;
  }
}

/** Changes the agent's key: when it is asked to, when it is old, and when a change was begun and not ended. */
class KeyChanges {
  readonly #context: AgentContext;
  readonly #identity: IdentityStore;
  #changing: Promise<void> | null = null;

  constructor(context: AgentContext, identity: IdentityStore) {
    this.#context = context;
    this.#identity = identity;
  }

  /** Of each session once, and then each day. */
  look(session: AgentSession): void {
    const { clock, compiled, log } = this.#context;
    const { keyDays } = compiled.config.link;
    const timer = clock.after(DAY_MS, () => this.look(session));
    void session.closed.then(() => timer.cancel());
    const oldMs = clock.now() - this.#identity.keyMadeAt();
    if (!this.#identity.changing && (keyDays === 0 || oldMs < keyDays * DAY_MS)) return;
    this.change(session).catch((error: unknown) =>
      log.warn({ code: toConnectorError(error).code }, `the key stays as it is: ${toConnectorError(error).message}`),
    );
  }

  change(session: AgentSession): Promise<void> {
    this.#changing ??= changeKey(this.#identity, session, this.#context.clock)
      .then(() =>
        this.#context.log.info("the agent has a new key; the control plane takes the old one until it has seen it"),
      )
      .finally(() => (this.#changing = null));
    return this.#changing;
  }
}

function takeStream(runner: CommandRunner, keys: KeyChanges, stream: LinkStream, session: AgentSession): void {
  const type = (stream.head as { type?: unknown } | null)?.type;
  if (type === "command") void runner.handle(stream, session);
  else if (keyChangeSchema.safeParse(stream.head).success)
    keys.change(session).then(
      () => stream.respond({}, { end: true }),
      (error: unknown) => stream.reset(toConnectorError(error)),
    );
  else
    stream.reset(
      new ConnectorError("PROTOCOL_ERROR", "The agent takes no stream of this type.", { fix: "Update the agent." }),
    );
}

function goOnline(
  { log, clock }: AgentContext,
  session: AgentSession,
  { journal }: OpenState,
  { outbox }: Parts,
): void {
  log.info({ session: session.id, replica: session.replica, pool: session.pool }, "online");
  void outbox.serve(session);
  const compact = () => void journal.compact(compactionTime(session.cloudNow(), clock.now())).catch(() => undefined);
  compact();
  const timer = setInterval(compact, COMPACT_MS).unref();
  void session.closed.then(() => clearInterval(timer));
}

function logMove({ log }: AgentContext, event: Extract<LinkEvent, { type: "state" }>): void {
  if (event.to !== "offline") {
    log.debug({ from: event.from, to: event.to }, "link");
    return;
  }
  const again = event.retryInMs === null ? "" : ` Dialling again in ${(event.retryInMs / 1000).toFixed(1)} s.`;
  log.warn(
    { code: event.error?.code, fix: event.error?.fix },
    `no link: ${event.error?.message ?? "It was closed."}${again}`,
  );
}
