// Puts one agent together, starts its parts in order and stops them. main.ts calls it; nothing else does.
import type { ControlServer } from "../control/index.ts";
import type { MetricsListener } from "../metrics/index.ts";
import type { AgentContext } from "./context.ts";
import { makeControl } from "./control.ts";
import { startServing } from "./deployments.ts";
import { greet } from "./greeting.ts";
import { heldBackLog } from "./held-back.ts";
import { makeLink } from "./link.ts";
import { findMembership } from "./membership.ts";
import { watchMetrics } from "./metrics.ts";
import { makeParts, type Parts } from "./parts.ts";
import { reloadConfig } from "./reload.ts";
import { openState, type OpenState } from "./state.ts";
import { makeMetricsListener } from "./telemetry.ts";

/** From the first signal to the end of the process. */
const STOP_MS = 10_000;

export interface RunningAgent {
  /** Takes no new commands, sends what it can in time, says goodbye; what runs goes on without it. */
  drain(signal: string): Promise<void>;
  /** Keeps the configuration in force when the new one is invalid. */
  reload(): void;
  /** Closes what must be closed, in whatever state the agent is. */
  abandon(): Promise<void>;
}

/** Checks all that can be wrong before anything is begun. When it rejects, nothing is left open. */
export async function startAgent(context: AgentContext): Promise<RunningAgent> {
  const startedAt = context.clock.now();
  const membership = findMembership(context);
  const { cloudUrl } = membership;
  const state = await openState(context);
  try {
    const parts = await makeParts(context, state);
    const watched = makeLink(context, membership, state, parts);
    const { link } = watched;
    const control = makeControl(context, { state, parts, watched, cloudUrl, startedAt });
    const { telemetry } = parts;
    const { figures, loop, spans } = telemetry;
    const { version } = context;
    watchMetrics({ figures, version, startedAt, state, parts, watched, loop, spans: spans.counts });
    const metrics = makeMetricsListener(context, parts, watched);
    parts.changes.on(heldBackLog(parts.runner, parts.policy, context.log));
    // Half a second: the link does not wait for it.
    void parts.facts.start().then(() => parts.changes.tell());
    await control.listen();
    await metrics?.listen();
    telemetry.loop.start();
    state.audit.append({
      event: "agent.started",
      who: "agent",
      note: `${context.version}, start ${state.journal.startCounter}, policy ${parts.policy.digest}`,
    });
    await startServing(context, parts);
    const resumed = await parts.runner.resume();
    void parts.pipelines
      .collect()
      .catch((error: unknown) => context.log.warn({ err: error }, "what earlier runs left could not be collected"));
    greet(context, { membership, state, parts, resumed });
    link.start();
    return {
      drain: (signal) => drain(context, signal, { state, parts, link, control, metrics }),
      reload: () => reloadConfig(context, state, parts),
      abandon: () => state.close(),
    };
  } catch (error) {
    await state.close();
    throw error;
  }
}

interface Draining {
  state: OpenState;
  parts: Parts;
  link: ReturnType<typeof makeLink>["link"];
  control: ControlServer;
  metrics: MetricsListener | null;
}

async function drain({ clock, log }: AgentContext, signal: string, one: Draining): Promise<void> {
  const { link, control, metrics, state, parts } = one;
  const until = clock.monotonic() + STOP_MS;
  const left = (most: number) => Math.max(100, Math.min(most, until - clock.monotonic()));
  log.info({ signal }, "stopping: no new commands; what runs goes on without the agent");
  parts.intake.drain();
  await parts.runner.drain(left(5000));
  parts.uploads.close();
  const online = link.session !== null;
  const flushed = online && (await parts.outbox.flush(left(3000)));
  if (online && !flushed) log.warn("some reports were not acknowledged in time; they are sent after the next start");
  await link.drain(left(1000));
  state.audit.append({ event: "agent.stopped", who: "agent", note: signal });
  parts.facts.stop();
  await within(clock, left(2000), parts.deployments.close());
  await parts.router.close(left(3000));
  await parts.connections.close();
  await parts.engines.close();
  parts.telemetry.loop.stop();
  await within(clock, left(1500), parts.telemetry.spans.close());
  await metrics?.close();
  await control.close();
  log.info("stopped");
}

/** An engine or a store that does not answer must not hold up the end. */
async function within(clock: AgentContext["clock"], ms: number, work: Promise<void>): Promise<void> {
  let timer: { cancel(): void } | null = null;
  const late = new Promise<void>((resolve) => (timer = clock.after(ms, resolve, { keepAlive: true })));
  await Promise.race([work, late]);
  (timer as { cancel(): void } | null)?.cancel();
}
