// What the feature is made from.
import type { Clock } from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Engines } from "../../engines/engine.ts";
import type { Journal } from "../../journal/journal.ts";
import type { LogStore } from "../../logs/index.ts";
import type { PolicyGuard } from "../../policy/action.ts";
import type { Redactor } from "../../redaction/redactor.ts";
import type { Router } from "../../router/router.ts";
import type { Secrets } from "../../secrets/secrets.ts";
import type { Stores } from "../../stores/store.ts";

/** What serves a model, from the agent's configuration. */
export interface Serving {
  /** For engine process; null = there is none. */
  process: { path: string; args: readonly string[]; env: Readonly<Record<string, string>> } | null;
  /** For engines with images, by digest; null = there is none. */
  image: string | null;
}

/** Of this machine, over all deployments. */
export interface ServingLimits {
  replicas: number;
  servingCpus: number;
  servingMemoryBytes: number;
  /** Of the cache of models. */
  modelBytes: number;
}

export const DEFAULT_TIMINGS = {
  /** Between two looks at a replica that is not ready yet. */
  startProbeMs: 250,
  probeMs: 2000,
  probeTimeoutMs: 2000,
  /** So many probes in a row without a yes: unready, gets no requests. */
  unreadyAfter: 3,
  /** For the time of so many: restarted. */
  restartAfter: 15,
  /** From start to ready; a large model takes its time. */
  startLimitMs: 300_000,
  /** Pause after a crash; doubles with each. */
  backoffMs: 1000,
  maxBackoffMs: 300_000,
  /** Ready for so long: the crashes before are forgotten. */
  healthyMs: 600_000,
  /** Requests under way at a replica that is taken away have so long. */
  drainMs: 30_000,
  /** Between TERM and KILL; a replica itself ends its requests within 20 s. */
  graceMs: 25_000,
  /** A request waits so long for a replica when there is none. */
  holdMs: 10_000,
  /** The engine is asked about work that runs. */
  lookMs: 5000,
  /** Before an engine, disk or journal that fails is asked again. */
  retryMs: 1000,
  /** Changes are told at most so often. */
  changeMs: 1000,
};
export type Timings = typeof DEFAULT_TIMINGS;

export interface DeploymentsDeps {
  journal: Journal;
  engines: Engines;
  router: Router;
  stores: Stores;
  secrets: Secrets;
  redactor: Redactor;
  /** The same store of logs as the pipelines'; a deployment is a run in it, a replica a step, a start an attempt. */
  logs: LogStore;
  /** The one in force, whenever it is asked. */
  policy: PolicyGuard;
  clock: Clock;
  log: Logger;
  stateDir: string;
  /** Asked at each use, so that a reload of the configuration shows. */
  serving: () => Serving;
  limits: () => ServingLimits;
  timings?: Partial<Timings>;
}

/** The same with every timing there. */
export type Deps = DeploymentsDeps & { timings: Timings };
