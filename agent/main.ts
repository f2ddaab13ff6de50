// The program `sallyport-agent`: reads configuration, environment and arguments, wires the parts, runs and stops them.
// The one place where everything meets: nothing imports it.
import { randomInt } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { hostname, userInfo } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import type { Logger } from "pino";
import {
  ConnectorError,
  parseEnrolmentSecret,
  systemClock,
  toConnectorError,
  type Clock,
  type EnrolmentSecret,
  type LinkStream,
} from "@sallyport/protocol";
import { openAudit, verifyAudit, type FileAudit } from "./audit/index.ts";
import { Intake } from "./commands/intake.ts";
import { CommandRegistry } from "./commands/registry.ts";
import { ReportOutbox } from "./commands/reports.ts";
import { CommandRunner } from "./commands/runner.ts";
import { configCommands, describe, loadFor, type ConfigSource } from "./config/cli.ts";
import { loadConfig, reload, type CompiledConfig, type Config } from "./config/index.ts";
import {
  askAgent,
  ControlServer,
  lockState,
  PauseFile,
  renderPs,
  stopWork,
  type PsAnswer,
  type PsStep,
  type StateLock,
} from "./control/index.ts";
import { createProcessEngine, type ProcessEngine } from "./engines/process/index.ts";
import { artifactKinds } from "./features/artifacts/index.ts";
import { createPipelines, type Pipelines } from "./features/pipelines/index.ts";
import { createLogger, HostFacts, statusBuilder } from "./host/index.ts";
import { openJournal, type SqliteJournal } from "./journal/sqlite-journal.ts";
import { IdentityStore, WsLink, type AgentSession, type LinkEvent } from "./link/index.ts";
import { LogStore } from "./logs/index.ts";
import { policyCommands } from "./policy/cli.ts";
import { LivePolicy } from "./policy/index.ts";
import { createRedactor, type Redactor } from "./redaction/index.ts";
import { openSecrets, type ConfiguredSecrets, type Secrets } from "./secrets/index.ts";
import { manifestOf, openStores, parseArtifactPath, type OpenStores, type Stores } from "./stores/index.ts";

const DEFAULT_CONFIG = "/etc/sallyport/agent.yaml";
/** From the first signal to the end of the process. */
const STOP_MS = 10_000;
const COMPACT_MS = 3600_000;
/** How long connections of an earlier configuration serve what began with them. */
const OLD_CONNECTIONS_MS = 3600_000;
const EXIT = { ok: 0, failed: 1, usage: 2 } as const;

const clock: Clock = systemClock;
const version = (JSON.parse(readFileSync(versionFile(), "utf8")) as { version: string }).version;

/** The compiled tree has its package.json beside it as well. */
function versionFile(): string {
  return fileURLToPath(new URL("./package.json", import.meta.url));
}

/** A failure that is explained by its sentence and its remedy; `code` is the exit code. */
function fail(error: ConnectorError): number {
  process.stderr.write(`sallyport-agent: ${describe(error)}`);
  const usage: readonly string[] = ["CONFIG_INVALID", "INPUT_INVALID", "ENROLMENT_MALFORMED"];
  return usage.includes(error.code) ? EXIT.usage : EXIT.failed;
}

const source: ConfigSource = {
  read(file) {
    const path = file ?? process.env["SALLYPORT_CONFIG"] ?? DEFAULT_CONFIG;
    if (file === undefined && process.env["SALLYPORT_CONFIG"] === undefined && !existsSync(path))
      return { text: null, source: `${path} (absent)` };
    try {
      return { text: readFileSync(path, "utf8"), source: path };
    } catch (cause) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `The configuration ${path} cannot be read (${(cause as NodeJS.ErrnoException).code}).`,
        {
          fix: "Name a file that the agent's user can read: --config FILE, or SALLYPORT_CONFIG.",
          cause,
        },
      );
    }
  },
  environment: process.env,
  write: (text) => void process.stdout.write(text),
  writeError: (text) => void process.stderr.write(text),
  exit: (code) => (process.exitCode = code),
};

// ---- run

/** The enrolment secret, by value or by file; it leaves the environment at once, so that no child inherits it. */
function readEnrolment(redactor: Redactor, wanted: boolean): EnrolmentSecret | null {
  const { SALLYPORT_ENROLL_SECRET: value, SALLYPORT_ENROLL_SECRET_FILE: file } = process.env;
  delete process.env["SALLYPORT_ENROLL_SECRET"];
  if (value !== undefined && value.trim() !== "") redactor.add(value.trim());
  // Used once: who has an identity needs none.
  if (!wanted) return null;
  let text = value;
  if (text === undefined && file !== undefined && file !== "") {
    try {
      text = readFileSync(file, "utf8");
    } catch (cause) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `The enrolment secret in ${file} cannot be read (${(cause as NodeJS.ErrnoException).code}).`,
        {
          fix: "Correct SALLYPORT_ENROLL_SECRET_FILE, or the file's rights.",
          cause,
        },
      );
    }
  }
  if (text === undefined || text.trim() === "") return null;
  redactor.add(text.trim());
  const secret = parseEnrolmentSecret(text);
  redactor.add(secret.secret.toString("base64url"));
  return secret;
}

function readCa(path: string | null): string | null {
  if (path === null) return null;
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `cloud.ca: the file ${path} cannot be read (${(cause as NodeJS.ErrnoException).code}).`,
      { fix: "Name a PEM file that the agent's user can read.", cause },
    );
  }
}

/** Reads and checks all that can be wrong before anything is begun, then runs until a signal. Answers with the exit code. */
async function run(configFile: string | undefined): Promise<number> {
  const redactor = createRedactor();
  let agent: Agent | null = null;
  let log: Logger | null = null;
  try {
    const { text, source: name } = source.read(configFile);
    const compiled = loadConfig(text, name, process.env);
    process.stdout.on("error", () => undefined);
    log = createLogger({
      level: compiled.config.log.level,
      redactor,
      write: (line) => void process.stdout.write(line),
      pretty: process.stdout.isTTY,
    });
    agent = new Agent(configFile, compiled, redactor, log);
    return await agent.run();
  } catch (caught) {
    const error = toConnectorError(caught);
    if (error.code === "INTERNAL") (log ?? console).error({ err: caught }, "the agent failed to start");
    await agent?.abandon();
    return fail(ConnectorError.fromBody(redactor.json(error.toBody())));
  }
}

/** Stores and secrets as configured now: a reload exchanges them, what is under way keeps those it began with. */
class Connections {
  readonly #redactor: Redactor;
  readonly #environment = { ...process.env };
  #config: Config;
  #secrets: ConfiguredSecrets;
  #stores: OpenStores;
  readonly secrets: Secrets;
  readonly stores: Stores;

  constructor(config: Config, redactor: Redactor) {
    this.#redactor = redactor;
    this.#config = config;
    this.#secrets = this.#openSecrets();
    this.#stores = openStores(config.stores, this.#secrets, clock);
    const ids = () => this.#stores.ids;
    this.secrets = {
      resolve: (text, signal) => this.#secrets.resolve(text, signal),
      named: (name, signal) => this.#secrets.named(name, signal),
    };
    this.stores = {
      get: (id) => this.#stores.get(id),
      get ids() {
        return ids();
      },
    };
  }

  #openSecrets(): ConfiguredSecrets {
    return openSecrets({ ...this.#config.secrets, environment: this.#environment, redactor: this.#redactor, clock });
  }

  replace(config: Config): void {
    const same =
      JSON.stringify([this.#config.stores, this.#config.secrets]) === JSON.stringify([config.stores, config.secrets]);
    this.#config = config;
    if (same) return;
    const old = { stores: this.#stores, secrets: this.#secrets };
    this.#secrets = this.#openSecrets();
    this.#stores = openStores(config.stores, this.#secrets, clock);
    clock.after(OLD_CONNECTIONS_MS, () => {
      old.secrets.close();
      void old.stores.close().catch(() => undefined);
    });
  }

  async close(): Promise<void> {
    this.#secrets.close();
    await this.#stores.close();
  }
}

class Agent {
  readonly #configFile: string | undefined;
  readonly #redactor: Redactor;
  readonly #log: Logger;
  #compiled: CompiledConfig;
  readonly #startedAt = clock.now();
  #lock: StateLock | null = null;
  #journal: SqliteJournal | null = null;
  #audit: FileAudit | null = null;
  #connections: Connections | null = null;
  #ended: ((code: number) => void) | null = null;
  #linkSince = clock.now();
  #linkProblem: string | null = null;

  constructor(configFile: string | undefined, compiled: CompiledConfig, redactor: Redactor, log: Logger) {
    this.#configFile = configFile;
    this.#compiled = compiled;
    this.#redactor = redactor;
    this.#log = log;
  }

  async run(): Promise<number> {
    const ended = new Promise<number>((resolve) => (this.#ended = resolve));
    const { config } = this.#compiled;
    const log = this.#log;
    const redactor = this.#redactor;
    const crashed = (error: unknown) => {
      log.fatal(
        { err: error },
        "a fault of the agent itself: it ends, what runs goes on, and a new start takes it over",
      );
      this.#ended?.(EXIT.failed);
      // Also when it was still starting.
      clock.after(2000, () => process.exit(EXIT.failed), { keepAlive: true });
    };
    process.on("uncaughtException", crashed);
    process.on("unhandledRejection", crashed);
    for (const warning of this.#compiled.warnings) log.warn(warning);

    const identity = new IdentityStore(config.state);
    const held = identity.load();
    const enrolment = readEnrolment(redactor, held === null);
    if (held === null && enrolment === null) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `This agent has not joined a control plane yet: ${config.state} holds no identity, and there is no enrolment secret.`,
        {
          fix: "Make one on the page Add agent, and start the agent with it in SALLYPORT_ENROLL_SECRET (or its file's path in SALLYPORT_ENROLL_SECRET_FILE).",
        },
      );
    }
    const cloudUrl = config.cloud.url ?? held?.identity.cloudUrl ?? null;
    if (cloudUrl === null) {
      throw new ConnectorError("CONFIG_INVALID", "The agent does not know the address of its control plane.", {
        fix: "Set cloud.url in the configuration, or SALLYPORT_URL.",
      });
    }
    const ca = readCa(config.cloud.ca);
    this.#lock = lockState(config.state);

    const audit = (this.#audit = await openAudit({
      folder: join(config.state, "audit"),
      clock,
      totalBytes: config.limits.auditBytes,
      fileBytes: Math.min(16 * 1024 ** 2, Math.ceil(config.limits.auditBytes / 8)),
      onFault: (error) => log.error({ code: error.code }, error.message),
    }));
    const journal = (this.#journal = await openJournal({
      file: join(config.state, "journal.db"),
      clock,
      onFault: (error, detail) => log.error({ code: error.code, detail }, error.message),
    }));

    const policy = new LivePolicy(this.#compiled.policy);
    const statusListeners: (() => void)[] = [];
    const statusChanged = () => {
      for (const listener of statusListeners) listener();
    };
    const intake = new Intake(clock, statusChanged);
    const pauseFile = new PauseFile(config.state);
    const pause = pauseFile.read();
    if (pause !== null) intake.pause(pause);

    const engine = createProcessEngine({ stateDir: config.state, clock });
    const connections = (this.#connections = new Connections(config, redactor));
    const { secrets, stores } = connections;
    const logs = new LogStore({
      stateDir: config.state,
      redactor,
      clock,
      capBytesPerAttempt: config.limits.logBytesPerAttempt,
      capBytes: config.limits.logBytes,
    });
    const pipelines = createPipelines({
      journal,
      engine,
      stores,
      secrets,
      redactor,
      logs,
      policy,
      programs: () => new Map(Object.entries(this.#compiled.config.programs)),
      stateDir: config.state,
      clock,
      log,
      workBytes: config.limits.workBytes,
      maxSteps: () => this.#compiled.config.limits.concurrentSteps,
    });
    const registry = new CommandRegistry();
    for (const kind of [
      ...artifactKinds({ stores, parsePath: parseArtifactPath, makeManifest: manifestOf }),
      ...pipelines.kinds,
    ])
      registry.add(kind);

    const runner = new CommandRunner({
      registry,
      journal,
      audit,
      intake,
      policy,
      redactor,
      clock,
      log,
      dispatchSequences: journal.dispatchSequences,
      maxRuns: () => this.#compiled.config.limits.concurrentRuns,
      changed: statusChanged,
    });
    const outbox = new ReportOutbox({ journal, redactor, clock, log });
    const facts = new HostFacts(config.state, clock);
    const status = statusBuilder({
      version,
      clock,
      host: () => facts.sample,
      labels: () => this.#compiled.config.labels,
      intake,
      stores: () =>
        this.#compiled.config.stores.map((one) => ({
          id: one.id,
          kind: one.kind,
          label: one.kind === "s3" ? `s3://${one.bucket}/${one.prefix}` : "file",
          grants: policy.grants(one.id),
        })),
      programs: () =>
        Object.keys(this.#compiled.config.programs).filter(
          (program) => policy.decide({ kind: "program", program }).allowed,
        ),
      engines: () => [engine.name].filter((name) => policy.decide({ kind: "engine", engine: name }).allowed),
      policy,
      commands: () => policy.allowedCommands(registry.names),
      limits: () => ({
        runs: Math.min(policy.limit("concurrentRuns"), this.#compiled.config.limits.concurrentRuns),
        steps: Math.min(policy.limit("concurrentSteps"), this.#compiled.config.limits.concurrentSteps),
      }),
      running: () => runner.running(),
      redact: (value) => redactor.json(value),
    });
    const link = new WsLink({
      cloudUrl,
      identity,
      enrolment,
      nameHint: hostname().slice(0, 63),
      ca,
      mac: true,
      version,
      hello: {
        journal: () => ({
          id: journal.id,
          startCounter: journal.startCounter,
          dispatchSequence: runner.dispatchSequences,
        }),
        generations: () => ({}),
        status,
        onStatusChange: (listener) => statusListeners.push(listener),
      },
      clock,
      random: () => randomInt(2 ** 32) / 2 ** 32,
    });
    link.onStream((stream, session) => this.#onStream(runner, stream, session));
    link.observe((event) => this.#onLink(event, journal, outbox));

    const who = `local:${userInfo().username}`;
    const control = new ControlServer(config.state, {
      ps: () => this.#ps({ runner, engine, intake, journal, state: () => link.state, cloudUrl }),
      pause: async (wanted) => {
        pauseFile.write(wanted);
        intake.pause(wanted);
        audit.append({ event: "intake.paused", who, note: wanted.reason });
        log.info({ until: wanted.until }, `intake paused: ${wanted.reason}`);
        return { paused: true };
      },
      resume: async () => {
        const paused = intake.paused !== null;
        pauseFile.write(null);
        intake.resume();
        audit.append({ event: "intake.resumed", who });
        log.info("intake resumed");
        return { paused };
      },
      stop: async (id) => {
        const stopped = await this.#stop(id, { runner, engine, pipelines, who });
        audit.append({ event: "local.stop", who, note: `${id ?? "all"}: ${stopped.join(", ")}` });
        log.info({ stopped }, "stopped at the agent's host");
        return { stopped };
      },
      ready: async () => {
        if (intake.draining) return { ready: false, why: "The agent is stopping." };
        return link.state === "online"
          ? { ready: true, why: "The link is up." }
          : {
              ready: false,
              why: `The link is ${link.state}${this.#linkProblem === null ? "" : `: ${this.#linkProblem}`}.`,
            };
      },
    });

    await facts.start();
    await control.listen();
    audit.append({
      event: "agent.started",
      who: "agent",
      note: `${version}, start ${journal.startCounter}, policy ${policy.digest}`,
    });
    const resumed = await runner.resume();
    this.#greet({
      cloudUrl,
      identity: held?.identity.names ?? null,
      paused: intake.paused !== null,
      resumed,
      policy,
      journal,
    });
    link.start();

    let stopping = false;
    const stop = (signal: NodeJS.Signals) => {
      if (stopping) {
        log.warn({ signal }, "stopping at once");
        this.#ended?.(EXIT.failed);
        return;
      }
      stopping = true;
      void this.#drain(signal, { intake, runner, outbox, link, control, engine, facts });
    };
    const hangUp = () => this.#reload(policy, runner, statusChanged);
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    process.on("SIGHUP", hangUp);

    const code = await ended;
    await Promise.race([
      this.abandon(),
      new Promise((resolve) => clock.after(1000, () => resolve(null), { keepAlive: true })),
    ]);
    return code;
  }

  /** Closes what is open, in whatever state the agent is. */
  async abandon(): Promise<void> {
    await this.#audit?.close().catch(() => undefined);
    await this.#journal?.close().catch(() => undefined);
    this.#lock?.release();
    this.#lock = null;
  }

  #onStream(runner: CommandRunner, stream: LinkStream, session: AgentSession): void {
    const type = (stream.head as { type?: unknown } | null)?.type;
    if (type === "command") void runner.handle(stream, session);
    else
      stream.reset(
        new ConnectorError("PROTOCOL_ERROR", "The agent takes no stream of this type.", { fix: "Update the agent." }),
      );
  }

  #onLink(event: LinkEvent, journal: SqliteJournal, outbox: ReportOutbox): void {
    const log = this.#log;
    if (event.type === "online") {
      const { session } = event;
      log.info({ session: session.id, replica: session.replica, pool: session.pool }, "online");
      void outbox.serve(session);
      // By the cloud's clock, the only one that says when an intent can no longer be offered.
      const compact = () => void journal.compact(session.cloudNow()).catch(() => undefined);
      compact();
      const timer = setInterval(compact, COMPACT_MS).unref();
      void session.closed.then(() => clearInterval(timer));
      return;
    }
    this.#linkSince = clock.now();
    this.#linkProblem = event.error?.message ?? null;
    if (event.to === "offline") {
      const again = event.retryInMs === null ? "" : `; dialling again in ${(event.retryInMs / 1000).toFixed(1)} s`;
      log.warn(
        { code: event.error?.code, fix: event.error?.fix },
        `no link: ${event.error?.message ?? "it was closed"}${again}`,
      );
    } else log.debug({ from: event.from, to: event.to }, "link");
  }

  async #ps(parts: {
    runner: CommandRunner;
    engine: ProcessEngine;
    intake: Intake;
    journal: SqliteJournal;
    state(): string;
    cloudUrl: string;
  }): Promise<PsAnswer> {
    const { config } = this.#compiled;
    const steps: PsStep[] = [];
    // Asking starts a host where none is; without its socket nothing can run.
    if (existsSync(join(config.state, "host", "host.sock"))) {
      for (const { name, status } of await parts.engine.list()) {
        if (status.state === "running") steps.push({ name, pid: status.pid, startedAt: status.startedAt });
      }
    }
    const running = parts.runner.running();
    const known = new Set<string>(running.map((one) => one.command));
    return {
      pid: process.pid,
      version,
      at: clock.now(),
      startedAt: this.#startedAt,
      link: { state: parts.state(), cloudUrl: parts.cloudUrl, since: this.#linkSince, problem: this.#linkProblem },
      paused: parts.intake.paused,
      draining: parts.intake.draining,
      commands: running.map((one) => ({
        ...one,
        steps: steps
          .filter((step) => step.name.startsWith(`${one.command}.`))
          .map((step) => ({
            ...step,
            name: one.run === null ? step.name : `${one.run}/${step.name.slice(37, step.name.lastIndexOf("."))}`,
          })),
      })),
      otherSteps: steps.filter((step) => !known.has(step.name.slice(0, 36))),
      unacknowledged: parts.journal.lastSequence - parts.journal.acknowledgedThrough,
    };
  }

  /** A run or a command is cancelled as a whole; a step (`<run>/<step>`) ends its run as cancelled. */
  async #stop(
    id: string | null,
    parts: { runner: CommandRunner; engine: ProcessEngine; pipelines: Pipelines; who: string },
  ): Promise<string[]> {
    const { runner, engine, pipelines, who } = parts;
    const stopped: string[] = [];
    if (id?.includes("/") === true) stopped.push(...((await pipelines.stop(id, who))?.stopped ?? []));
    for (const one of runner.running()) {
      if (id !== null && one.command !== id && one.run !== id) continue;
      const ofRun = one.run === null ? null : await pipelines.stop(one.run, who);
      if (ofRun !== null || (await runner.cancelLocal(one.command, who)))
        stopped.push(one.run ?? one.command, ...(ofRun?.stopped ?? []));
    }
    if (existsSync(join(this.#compiled.config.state, "host", "host.sock")))
      stopped.push(...(await stopWork(engine, (name) => id === null || name === id)));
    if (id !== null && stopped.length === 0) {
      throw new ConnectorError("NOT_FOUND", `Nothing of the name ${id} runs here.`, {
        fix: "See what does with: sallyport-agent ps",
      });
    }
    return stopped;
  }

  #greet(facts: {
    cloudUrl: string;
    identity: { replica: string; pool: string; workspace: string } | null;
    paused: boolean;
    resumed: number;
    policy: LivePolicy;
    journal: SqliteJournal;
  }): void {
    const { config } = this.#compiled;
    const rows = {
      version,
      state: `${config.state} (writable, start ${facts.journal.startCounter})`,
      cloud: facts.cloudUrl,
      identity:
        facts.identity === null
          ? "none yet: enrolling"
          : `${facts.identity.replica} in pool ${facts.identity.pool} of ${facts.identity.workspace}`,
      stores: config.stores.map((one) => `${one.id} (${one.kind})`).join(", ") || "none",
      programs: Object.keys(config.programs).join(", ") || "none",
      policy: facts.policy.digest.slice(0, 12),
      intake: facts.paused ? "paused" : "open",
      resumed: `${facts.resumed} commands from before`,
    };
    if (process.stdout.isTTY) {
      const lines = Object.entries(rows).map(([key, value]) => `  ${key.padEnd(9)} ${value}`);
      process.stdout.write(this.#redactor.text(`sallyport-agent\n${lines.join("\n")}\n`));
    } else this.#log.info(rows, "started");
  }

  #reload(policy: LivePolicy, runner: CommandRunner, statusChanged: () => void): void {
    const log = this.#log;
    try {
      const { text, source: name } = source.read(this.#configFile);
      const { current, problem, needRestart } = reload(this.#compiled, text, name, process.env);
      if (problem !== null) throw problem;
      this.#connections?.replace(current.config);
      this.#compiled = current;
      policy.replace(current.policy);
      runner.policyChanged();
      statusChanged();
      this.#audit?.append({ event: "config.reloaded", who: "agent", note: `policy ${current.policy.digest}` });
      log.info({ policy: current.policy.digest.slice(0, 12) }, "configuration reloaded");
      for (const warning of current.warnings) log.warn(warning);
      if (needRestart.length > 0)
        log.warn({ sections: needRestart }, "these sections changed and count only from the next start");
    } catch (caught) {
      const error = toConnectorError(caught);
      log.error(
        { code: error.code },
        `the configuration was not reloaded, the old one stays: ${describe(error).trim()}`,
      );
    }
  }

  async #drain(
    signal: string,
    parts: {
      intake: Intake;
      runner: CommandRunner;
      outbox: ReportOutbox;
      link: WsLink;
      control: ControlServer;
      engine: ProcessEngine;
      facts: HostFacts;
    },
  ): Promise<void> {
    const until = clock.monotonic() + STOP_MS;
    const left = (most: number) => Math.max(100, Math.min(most, until - clock.monotonic()));
    this.#log.info({ signal }, "stopping: no new commands; what runs goes on without the agent");
    try {
      parts.intake.drain();
      await parts.runner.drain(left(5000));
      const online = parts.link.state === "online";
      const flushed = online && (await parts.outbox.flush(left(3000)));
      if (online && !flushed)
        this.#log.warn("some reports were not acknowledged in time; they are sent after the next start");
      await parts.link.drain(left(1000));
      this.#audit?.append({ event: "agent.stopped", who: "agent", note: signal });
      parts.facts.stop();
      await this.#connections?.close();
      parts.engine.close();
      await parts.control.close();
      this.#log.info("stopped");
      this.#ended?.(EXIT.ok);
    } catch (error) {
      this.#log.error({ err: error }, "stopping went wrong");
      this.#ended?.(EXIT.failed);
    }
  }
}

// ---- the program

/** `30m`, `2h`, `1d`, or a date and time. Answers in ms since the epoch. */
function parseUntil(text: string): number {
  const duration = /^(\d+)(s|m|h|d)$/.exec(text);
  const unitMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;
  const at =
    duration === null
      ? Date.parse(text)
      : clock.now() + Number(duration[1]) * unitMs[duration[2] as keyof typeof unitMs];
  if (!Number.isFinite(at) || at <= clock.now())
    throw new InvalidArgumentError("A time to come is expected: 30m, 2h, 1d, or a date such as 2030-01-31T18:00Z.");
  return at;
}

/** Runs a sub-command that talks to the agent of the configured state directory. */
function local(action: (stateDir: string) => Promise<number>): (configFile: string | undefined) => Promise<void> {
  return async (configFile) => {
    try {
      const loaded = loadFor(source, configFile);
      if (loaded !== null) process.exitCode = await action(loaded.config.state);
    } catch (error) {
      process.exitCode = fail(toConnectorError(error));
    }
  };
}

/** Without an agent only the work itself can be stopped; the next start of the agent finds it ended. */
async function stopWithoutAgent(stateDir: string, id: string | null): Promise<string[]> {
  if (!existsSync(join(stateDir, "host", "host.sock"))) return [];
  const engine = createProcessEngine({ stateDir, clock });
  try {
    return await stopWork(engine, (name) => id === null || name === id || name.slice(0, 36) === id);
  } finally {
    if (id === null) await engine.quitHost();
    engine.close();
  }
}

function buildProgram(): Command {
  const program = new Command("sallyport-agent")
    .description(
      "Acts inside this network for a control plane that it dials out to, with credentials and under a policy that stay here.",
    )
    .version(version);
  program.exitOverride();
  const config = [
    "-c, --config <file>",
    `the configuration file (default: $SALLYPORT_CONFIG, then ${DEFAULT_CONFIG})`,
  ] as const;

  program
    .command("run")
    .description("run the agent until it is told to stop (SIGTERM; SIGHUP reloads the configuration)")
    .option(...config)
    .action(async (options: { config?: string }) => {
      const code = await run(options.config);
      // What is still on its way (a worker, a socket) must not hold up the end.
      process.stdout.write("", () => process.exit(code));
    });
  configCommands(program, source);
  policyCommands(program, { ...source, load: (file) => loadFor(source, file)?.policy ?? null });

  program
    .command("audit")
    .description("look at the audit log")
    .command("verify")
    .description("check the chain of records; exit code 1 names the first one that is not as it was written")
    .option(...config)
    .option("-o, --output <format>", "text or json", "text")
    .action((options: { config?: string; output: string }) =>
      local(async (stateDir) => {
        let verdict = await verifyAudit(join(stateDir, "audit"));
        // A file may have been closed and renamed by a running agent in the middle of it.
        if (!verdict.sound) verdict = await verifyAudit(join(stateDir, "audit"));
        if (options.output === "json") process.stdout.write(`${JSON.stringify(verdict)}\n`);
        else if (verdict.sound)
          process.stdout.write(
            `The audit log is whole: ${verdict.records} records, ${verdict.firstSeq} to ${verdict.lastSeq}, in ${verdict.files} files. Head ${verdict.lastHash}\n`,
          );
        else
          process.stdout.write(
            `The audit log is NOT whole: ${verdict.file}, line ${verdict.line}${verdict.seq === null ? "" : ` (record ${verdict.seq})`}: ${verdict.problem}.\n`,
          );
        return verdict.sound ? EXIT.ok : EXIT.failed;
      })(options.config),
    );

  program
    .command("ps")
    .description("what the agent does now, also while the control plane is away")
    .option(...config)
    .option("-o, --output <format>", "text or json", "text")
    .action((options: { config?: string; output: string }) =>
      local(async (stateDir) => {
        const answer = (await askAgent(stateDir, { op: "ps" })) as PsAnswer;
        process.stdout.write(options.output === "json" ? `${JSON.stringify(answer)}\n` : renderPs(answer));
        return EXIT.ok;
      })(options.config),
    );

  program
    .command("pause")
    .description("take no new commands; what runs goes on")
    .option(...config)
    .option("-r, --reason <text>", "shown to whoever waits", "maintenance")
    .option("-u, --until <time>", "resume by itself: 30m, 2h, 1d, or a date and time", parseUntil)
    .action((options: { config?: string; reason: string; until?: number }) =>
      local(async (stateDir) => {
        await askAgent(stateDir, { op: "pause", reason: options.reason, until: options.until ?? null });
        process.stdout.write(
          options.until === undefined
            ? "Paused until: sallyport-agent resume\n"
            : `Paused until ${new Date(options.until).toISOString()}\n`,
        );
        return EXIT.ok;
      })(options.config),
    );

  program
    .command("resume")
    .description("take new commands again")
    .option(...config)
    .action((options: { config?: string }) =>
      local(async (stateDir) => {
        const { paused } = (await askAgent(stateDir, { op: "resume" })) as { paused: boolean };
        process.stdout.write(paused ? "Resumed.\n" : "It was not paused.\n");
        return EXIT.ok;
      })(options.config),
    );

  program
    .command("stop")
    .description(
      "stop a run, a command or a step (its id as ps shows it), or everything; works without a running agent",
    )
    .argument("[id]", "what to stop")
    .option("-a, --all", "everything")
    .option(...config)
    .action((id: string | undefined, options: { config?: string; all?: boolean }) =>
      local(async (stateDir) => {
        if ((id === undefined) === (options.all !== true))
          throw new ConnectorError("INPUT_INVALID", "What is to be stopped?", { fix: "Give one id, or --all." });
        let stopped: string[];
        try {
          stopped = ((await askAgent(stateDir, { op: "stop", id: id ?? null })) as { stopped: string[] }).stopped;
        } catch (error) {
          if (!(error instanceof ConnectorError) || error.details?.["absent"] !== true) throw error;
          stopped = await stopWithoutAgent(stateDir, id ?? null);
        }
        process.stdout.write(stopped.length === 0 ? "Nothing was running.\n" : `Stopped ${stopped.join(", ")}\n`);
        return id !== undefined && stopped.length === 0 ? EXIT.failed : EXIT.ok;
      })(options.config),
    );

  program
    .command("ready")
    .description("exit code 0 when the link is up; for probes")
    .option(...config)
    .action((options: { config?: string }) =>
      local(async (stateDir) => {
        const { ready, why } = (await askAgent(stateDir, { op: "ready" }, 5000)) as { ready: boolean; why: string };
        process.stdout.write(`${why}\n`);
        return ready ? EXIT.ok : EXIT.failed;
      })(options.config),
    );

  program
    .command("version")
    .description("print the version")
    .action(() => void process.stdout.write(`${version}\n`));
  return program;
}

try {
  await buildProgram().parseAsync(process.argv);
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Help and version end here too, with 0.
  process.exitCode = error.exitCode === 0 ? EXIT.ok : EXIT.usage;
}
