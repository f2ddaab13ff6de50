// A whole system for a test: control plane and agents as programs, each with a folder of its own, wired by nothing but
// the link. Folders are kept until the test ends, so that it can look at what was left on disk.
import { randomInt } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import type { Agent, MadeEnrollment } from "../../cloud/http/api.ts";
import { TestApi } from "./api.ts";
import { binFile, runProgram, startProgram, tempDir, waitFor, type Program, type Teardown } from "./launcher.ts";
import { onPostgres, postgres } from "./postgres.ts";

/** Where the kernel gives none by itself: a program that ends and starts again finds its port as it left it. */
const [LEAST_PORT, MOST_PORT] = [12_000, 32_000];

export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(LEAST_PORT, MOST_PORT);
    const server = createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once("error", () => resolve(false)).listen(port, "127.0.0.1", () => resolve(true));
    });
    if (!free) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
}

/** A control plane as its API shows it, wherever it runs. */
export class CloudClient {
  /** What agents dial. */
  readonly url: string;
  api: TestApi;

  constructor(url: string, api: TestApi) {
    this.url = url;
    this.api = api;
  }

  enroll(pool: string): Promise<MadeEnrollment> {
    return this.api.json<MadeEnrollment>("/v1/enrollments", {
      json: { pool },
      headers: { "idempotency-key": `enroll-${Math.random()}` },
    });
  }

  async agents(): Promise<Agent[]> {
    return (await this.api.json<{ items: Agent[] }>("/v1/agents")).items;
  }

  /** The only agent, or the one named. */
  async agent(name?: string): Promise<Agent> {
    const found = (await this.agents()).find((agent) => name === undefined || agent.name === name);
    if (!found) throw new Error(`no agent ${name ?? "at all"}`);
    return found;
  }

  connected(name?: string): Promise<Agent> {
    return waitFor("an agent to be connected", async () => {
      const agent = await this.agent(name);
      return agent.state === "connected" && agent.status !== null && agent;
    });
  }
}

export interface CloudOptions {
  /** On loopback; default a free one. */
  port?: number;
  /** Serve TLS from the control plane's own CA; default plain http on loopback. */
  tls?: boolean;
  args?: string[];
  env?: Record<string, string>;
  nodeArgs?: string[];
  /** Default: the tree under test. */
  tree?: "source" | "dist";
  /** Its data directory; default a fresh one. */
  dir?: string;
  /** Of a person who signed in at another process on the same database; default: signs in by its own link. */
  token?: string | null;
  /** PostgreSQL's address; default SQLite, or a fresh one where the test runs on PostgreSQL (postgres.ts). */
  database?: string;
}

export class TestCloud extends CloudClient {
  readonly dir: string;
  readonly port: number;
  program!: Program;
  /** Everything it printed, over all its starts. */
  readonly programs: Program[] = [];
  readonly #t: Teardown;
  readonly #options: CloudOptions;

  private constructor(t: Teardown, port: number, options: CloudOptions) {
    const url = `${options.tls ? "https" : "http"}://127.0.0.1:${port}`;
    super(url, new TestApi(url));
    this.#t = t;
    this.#options = options;
    this.port = port;
    this.dir = options.dir ?? tempDir(t, "cloud");
  }

  static async start(t: Teardown, options: CloudOptions = {}): Promise<TestCloud> {
    const database = options.database ?? (onPostgres ? await (await postgres()).database() : undefined);
    const env = { ...(database === undefined ? {} : { SALLYPORT_DATABASE_URL: database }), ...options.env };
    const cloud = new TestCloud(t, options.port ?? (await freePort()), { ...options, env });
    await cloud.start();
    if (options.token == null) await cloud.api.signIn(readFileSync(join(cloud.dir, "sign-in-url"), "utf8").trim());
    else cloud.api.token = options.token;
    return cloud;
  }

  /** PEM of its own CA; undefined without TLS. */
  get ca(): string | undefined {
    return this.#options.tls ? readFileSync(join(this.dir, "tls/ca.crt"), "utf8") : undefined;
  }

  async start(): Promise<void> {
    const tls = this.#options.tls ? ["--tls", "own"] : [];
    this.program = startProgram(this.#t, {
      name: "cloud",
      args: [
        ...(this.#options.nodeArgs ?? []),
        binFile("cloud/bin/sallyport-cloud", this.#options.tree),
        "run",
        "--data",
        this.dir,
        "--listen",
        `127.0.0.1:${this.port}`,
        ...tls,
        ...(this.#options.args ?? []),
      ],
      env: this.#options.env ?? {},
    });
    this.programs.push(this.program);
    await waitFor(
      "the control plane to answer",
      async () => {
        if (this.program.exit) return true;
        if (this.#options.tls && this.api.ca === undefined) {
          const token = this.api.token;
          this.api = new TestApi(this.url, this.ca);
          this.api.token = token;
        }
        return (await this.api.call("/readyz")).status === 200;
      },
      { timeoutMs: 60_000 },
    );
    if (this.program.exit) throw new Error(`the control plane ended:\n${this.program.tail()}`);
  }

  /** Another subcommand of the same program on this control plane's data: `cli(["admin", "reset"])`. */
  cli(args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
    return runProgram(this.#t, {
      name: `cloud ${args[0]}`,
      args: [
        binFile("cloud/bin/sallyport-cloud", this.#options.tree),
        ...args,
        "--data",
        this.dir,
        "--listen",
        `127.0.0.1:${this.port}`,
      ],
      env: this.#options.env ?? {},
    });
  }
}

export interface AgentOptions {
  /** YAML of everything but `cloud` and `state`. */
  config: string;
  /** Default: the control plane's own URL. */
  url?: string;
  /** PEM file that replaces the pinned CA. */
  ca?: string;
  env?: Record<string, string>;
  nodeArgs?: string[];
  /** Default: the tree under test. */
  tree?: "source" | "dist";
  /** Its state directory; default a fresh one. */
  state?: string;
  /** A file that stands in the place of /etc/hosts, for it alone (Linux, root). It may be written anew in place. */
  hosts?: string;
}

export class TestAgent {
  readonly dir: string;
  readonly state: string;
  readonly configFile: string;
  program!: Program;
  readonly programs: Program[] = [];
  readonly #t: Teardown;
  readonly #options: AgentOptions;

  constructor(t: Teardown, cloud: CloudClient, options: AgentOptions) {
    this.#t = t;
    this.#options = options;
    this.dir = tempDir(t, "agent");
    this.state = options.state ?? join(this.dir, "state");
    this.configFile = join(this.dir, "agent.yaml");
    this.configure(options.config, options.url ?? cloud.url, options.ca);
    // what runs a step outlives the agent by design; here nothing may outlive the test
    t.teardown(async () => {
      await this.program?.killHard();
      await this.cli(["stop", "--all"]).exited;
    });
  }

  configure(config: string, url: string, ca?: string): void {
    const trust = ca === undefined ? "" : `, ca: ${JSON.stringify(ca)}`;
    writeFileSync(
      this.configFile,
      `cloud: { url: ${JSON.stringify(url)}${trust} }\nstate: ${JSON.stringify(this.state)}\n${config}`,
    );
  }

  start(secret?: string): Program {
    this.program = startProgram(this.#t, {
      name: "agent",
      ...this.#within([
        ...(this.#options.nodeArgs ?? []),
        binFile("agent/bin/sallyport-agent", this.#options.tree),
        "run",
        "--config",
        this.configFile,
      ]),
      env: { ...this.#options.env, ...(secret === undefined ? {} : { SALLYPORT_ENROLL_SECRET: secret }) },
    });
    this.programs.push(this.program);
    return this.program;
  }

  /** Another subcommand of the same program: `cli(["ps"])`. */
  cli(args: string[], env: Record<string, string> = {}): Program {
    return startProgram(this.#t, {
      name: `agent ${args[0]}`,
      env,
      ...this.#within([binFile("agent/bin/sallyport-agent", this.#options.tree), ...args, "--config", this.configFile]),
    });
  }

  #within(args: string[]): { command?: string; args: string[] } {
    const { hosts } = this.#options;
    if (hosts === undefined) return { args };
    const script = 'mount --bind "$0" /etc/hosts && exec "$@"';
    return { command: "unshare", args: ["--mount", "sh", "-c", script, hosts, process.execPath, ...args] };
  }
}

/** Enrols and connects an agent in `pool`. */
export async function connectAgent(
  t: Teardown,
  cloud: CloudClient,
  pool: string,
  options: AgentOptions,
): Promise<TestAgent> {
  const agent = new TestAgent(t, cloud, options);
  const enrollment = await cloud.enroll(pool);
  agent.start(enrollment.secret);
  await waitFor(
    "the agent to connect",
    async () => {
      if (agent.program.exit) return true;
      const { agent: id } = await cloud.api.json<{ agent: string | null }>(`/v1/enrollments/${enrollment.id}`);
      return (await cloud.agents()).some((row) => row.id === id && row.state === "connected" && row.status !== null);
    },
    { timeoutMs: 60_000 },
  );
  if (agent.program.exit) throw new Error(`the agent ended:\n${agent.program.tail()}`);
  return agent;
}

export const TERMINAL = ["succeeded", "failed", "cancelled"];

/** Ceilings of a policy that do not stand in a test's way; a line of `policy:`. */
export const CEILINGS =
  "ceilings: { concurrentRuns: 2, concurrentSteps: 2, stepTimeoutMs: 3600000, stepsPerRun: 100, uploadBytes: 1073741824, streams: 32 }";
