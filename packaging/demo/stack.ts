// Starts a control plane and an agent as two separate programs that share nothing but the link, each in its own folder,
// and stops and removes them. The agent's folder plays the private network: its store, its configuration, its state.
import { spawn, type ChildProcess } from "node:child_process";
import { cpSync, createWriteStream, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Api } from "./api.ts";

const here = import.meta.dirname;
// the same two folders up from the source tree and from the compiled one
const root = join(here, "../..");

/** Environment of the programs: nothing of ours but what a shell would give them. */
const cleanEnv = (more: Record<string, string> = {}): Record<string, string> => ({
  PATH: process.env.PATH ?? "",
  HOME: process.env.HOME ?? tmpdir(),
  ...more,
});

const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() =>
        address !== null && typeof address === "object" ? resolve(address.port) : reject(new Error("no free port")),
      );
    });
  });

/** Calls `probe` until it answers something, at most `withinMs`. The error names what was waited for. */
export async function until<T>(
  what: string,
  withinMs: number,
  probe: () => Promise<T | undefined | null | false>,
): Promise<T> {
  const end = performance.now() + withinMs;
  let last: unknown;
  do {
    try {
      const found = await probe();
      if (found !== undefined && found !== null && found !== false) return found;
    } catch (error) {
      last = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  } while (performance.now() < end);
  throw new Error(
    `waited ${Math.round(withinMs / 1000)} s in vain for ${what}${last instanceof Error ? `: ${last.message}` : ""}`,
  );
}

export class Stack {
  readonly folder = mkdtempSync(join(tmpdir(), "sallyport-demo-"));
  readonly store = join(this.folder, "private/store");
  url = "";
  api = new Api("");
  #cloud: ChildProcess | null = null;
  #agent: ChildProcess | null = null;
  #removed = false;

  #start(name: string, bin: string, args: string[], env: Record<string, string> = {}): ChildProcess {
    if (this.#removed) throw new Error("the demo is being removed");
    const log = createWriteStream(join(this.folder, `${name}.log`), { flags: "a" });
    // a group of its own: Ctrl+C reaches this program alone, which then stops the others in order
    const child = spawn(process.execPath, [join(root, bin), ...args], {
      env: cleanEnv(env),
      detached: true,
      stdio: ["ignore", "pipe", "pipe"],
    });
    child.stdout.pipe(log, { end: false });
    child.stderr.pipe(log, { end: false });
    child.on("error", (error) => log.write(`${error.message}\n`));
    return child;
  }

  /** Last lines of a program's log, for an error message. */
  tail(name: "cloud" | "agent"): string {
    try {
      return readFileSync(join(this.folder, `${name}.log`), "utf8")
        .trimEnd()
        .split("\n")
        .slice(-15)
        .join("\n");
    } catch {
      return "(no log)";
    }
  }

  async startCloud(): Promise<void> {
    this.url = `http://127.0.0.1:${await freePort()}`;
    this.#cloud = this.#start("cloud", "cloud/bin/sallyport-cloud.mjs", [
      "run",
      "--data",
      join(this.folder, "cloud"),
      "--listen",
      new URL(this.url).host,
    ]);
    await until("the control plane to answer", 20_000, async () => {
      if (this.#cloud?.exitCode !== null)
        throw new Error(`it ended with exit code ${this.#cloud?.exitCode}:\n${this.tail("cloud")}`);
      return (await fetch(`${this.url}/readyz`)).ok;
    });
    this.api = new Api(this.url);
  }

  /** The sign-in URL that the control plane left for its admin at first start. */
  firstSignInUrl(): string {
    return readFileSync(join(this.folder, "cloud/sign-in-url"), "utf8").trim();
  }

  /** A further one, as `sallyport-cloud admin reset` gives it to whoever has the control plane's disk. */
  async newSignInUrl(): Promise<string> {
    const child = spawn(
      process.execPath,
      [
        join(root, "cloud/bin/sallyport-cloud.mjs"),
        "admin",
        "reset",
        "--data",
        join(this.folder, "cloud"),
        "--url",
        this.url,
      ],
      { env: cleanEnv(), stdio: ["ignore", "pipe", "inherit"] },
    );
    let out = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
    const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
    const found = /https?:\/\/\S+\/signin#\S+/.exec(out)?.[0];
    if (code !== 0 || found === undefined)
      throw new Error(`sallyport-cloud admin reset ended with exit code ${code} and no sign-in URL`);
    return found;
  }

  /** Prepares the private side: a copy of the sample store, and the agent's configuration. */
  async preparePrivateSide(): Promise<void> {
    const servingPort = await freePort();
    // The tree that this runs from.
    const serving = join(root, `packaging/serving/main${import.meta.filename.slice(-3)}`);
    mkdirSync(join(this.folder, "private"), { recursive: true, mode: 0o700 });
    cpSync(join(root, "packaging/demo/sample"), this.store, { recursive: true });
    writeFileSync(
      join(this.folder, "private/agent.yaml"),
      `# The demo's agent: one store, one program, and a policy that says what the cloud may ask for.
cloud: { url: ${this.url} }
state: ${join(this.folder, "private/state")}
labels: { demo: "yes" }
stores:
  - { id: sample, kind: fs, root: ${this.store} }
programs:
  node: { path: ${process.execPath} }
serving:
  listen: 127.0.0.1:${servingPort}
  process: { path: ${process.execPath}, args: [${JSON.stringify(serving)}] }
policy:
  commands: ["artifact.*", "pipeline.run", "run.*", "deployment.*"]
  engines: [process]
  programs: [node]
  stores:
    - { store: sample, read: ["**"], write: ["runs/**", "inbox/**"], delete: ["inbox/**"] }
  release:
    metadata: true
    previews: { rows: 500 }
    logs: true
    raw: [{ store: sample, paths: ["**"] }]
    predict: true
  ceilings: { concurrentRuns: 2, concurrentSteps: 2, stepTimeoutMs: 3600000, stepsPerRun: 20, uploadBytes: 1073741824, streams: 32,
    deployments: 4, replicas: 4, cpus: 2, memoryBytes: 1073741824 }
`,
    );
  }

  /** Asks the running agent on its own machine, as its owner does. */
  async #ask<T>(...words: string[]): Promise<T> {
    const child = spawn(
      process.execPath,
      [
        join(root, "agent/bin/sallyport-agent.mjs"),
        ...words,
        "--output",
        "json",
        "--config",
        join(this.folder, "private/agent.yaml"),
      ],
      { env: cleanEnv(), stdio: ["ignore", "pipe", "inherit"] },
    );
    let out = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => (out += text));
    const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
    if (code !== 0) throw new Error(`sallyport-agent ${words[0]} ended with exit code ${code}`);
    return JSON.parse(out) as T;
  }

  /** The key never leaves the agent's machine: here it is asked for as its owner. */
  async endpoint(deployment: string): Promise<{ url: string; key: string }> {
    const [found] = await this.#ask<{ url: string; key: string }[]>("endpoint", deployment);
    return found!;
  }

  async replicas(deployment: string): Promise<{ name: string; pid: number | null }[]> {
    const { deployments } = await this.#ask<{
      deployments: { name: string; replicas: { name: string; pid: number | null }[] }[];
    }>("ps");
    return deployments.find(({ name }) => name === deployment)?.replicas ?? [];
  }

  /** Starts the agent; `enrollSecret` is needed the first time only. */
  startAgent(enrollSecret?: string): void {
    this.#agent = this.#start(
      "agent",
      "agent/bin/sallyport-agent.mjs",
      ["run", "--config", join(this.folder, "private/agent.yaml")],
      enrollSecret === undefined ? {} : { SALLYPORT_ENROLL_SECRET: enrollSecret },
    );
  }

  get agentRuns(): boolean {
    return this.#agent !== null && this.#agent.exitCode === null && this.#agent.signalCode === null;
  }

  get pids(): { cloud: number | undefined; agent: number | undefined } {
    return { cloud: this.#cloud?.pid, agent: this.agentRuns ? this.#agent?.pid : undefined };
  }

  async #stop(child: ChildProcess | null): Promise<void> {
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGTERM");
    const force = setTimeout(() => child.kill("SIGKILL"), 15_000);
    await ended;
    clearTimeout(force);
  }

  async stopAgent(): Promise<void> {
    await this.#stop(this.#agent);
  }

  /** Stops everything and removes the folder. */
  async remove(): Promise<void> {
    this.#removed = true;
    await this.#stop(this.#agent);
    await this.#stop(this.#cloud);
    // what runs a step outlives the agent by design; here nothing may stay
    const child = spawn(
      process.execPath,
      [
        join(root, "agent/bin/sallyport-agent.mjs"),
        "stop",
        "--all",
        "--config",
        join(this.folder, "private/agent.yaml"),
      ],
      { env: cleanEnv(), stdio: "ignore" },
    );
    await new Promise((resolve) => child.on("close", resolve).on("error", resolve));
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}
