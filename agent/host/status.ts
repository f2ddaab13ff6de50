// The agent's status as the control plane is told it: made anew at each call from what is true then.
import type { AgentStatus, Clock } from "@sallyport/protocol";
import type { HostSample } from "./facts.ts";

export interface StatusSources {
  version: string;
  clock: Clock;
  host(): HostSample;
  process(): Omit<NonNullable<AgentStatus["process"]>, "residentBytes">;
  labels(): Record<string, string>;
  intake: { readonly paused: { reason: string; until: number | null } | null; readonly draining: boolean };
  stores(): AgentStatus["stores"];
  programs(): string[];
  engines(): string[];
  /** By name, of those that other agents may be asking too. */
  engineIds(): NonNullable<AgentStatus["engineIds"]>;
  policy: { readonly digest: string };
  /** Kinds that the agent knows and the policy allows. */
  commands(): string[];
  limits(): AgentStatus["limits"];
  ceilings(): AgentStatus["ceilings"];
  /** Engines that can serve models. */
  serving(): AgentStatus["serving"];
  deployments(): AgentStatus["deployments"];
  running(): {
    command: AgentStatus["running"][number]["command"];
    run: AgentStatus["running"][number]["run"];
    kind: string;
  }[];
  /** Words of the customer's configuration may hold anything. */
  redact<T>(value: T): T;
}

/** A status is one line: what runs is cut beyond this. */
const MAX_RUNNING = 200;

export const statusBuilder = (sources: StatusSources) => (): AgentStatus =>
  sources.redact({
    at: sources.clock.now(),
    version: sources.version,
    labels: sources.labels(),
    paused: sources.intake.paused,
    draining: sources.intake.draining,
    stores: sources.stores(),
    programs: sources.programs(),
    engines: sources.engines(),
    engineIds: sources.engineIds(),
    policyDigest: sources.policy.digest,
    commands: sources.commands(),
    limits: sources.limits(),
    ceilings: sources.ceilings(),
    serving: sources.serving(),
    deployments: sources.deployments(),
    running: sources
      .running()
      .slice(0, MAX_RUNNING)
      .map(({ command, run, kind }) => ({ command, run, kind })),
    host: sources.host(),
    process: processOf(sources.process()),
  });

const processOf = (one: ReturnType<StatusSources["process"]>): NonNullable<AgentStatus["process"]> => ({
  ...one,
  clockSkewMs: one.clockSkewMs === null ? null : Math.round(one.clockSkewMs * 10) / 10,
  residentBytes: process.memoryUsage.rss(),
});
