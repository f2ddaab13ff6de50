// A system under faults: a control plane and an agent as programs, each started anew when it died, and the targets that
// count what its commands did. One world serves many cases.
import { createHash, randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { fileURLToPath } from "node:url";
import type { DeploymentDetail, Run, RunDetail } from "../../cloud/http/api.ts";
import { ApiProblem } from "../support/api.ts";
import { repository, tempDir, waitFor, type Program, type Teardown } from "../support/launcher.ts";
import { connectAgent, freePort, TestCloud, type TestAgent } from "../support/stack.ts";
import type { KillPlan, Victim } from "./boundaries.ts";
import { startEngine, type EngineName, type SweptEngine } from "./engines.ts";

const POOL = "lab";
const STEP = readFileSync(join(repository, "test/soak/step.mjs"));
const MODEL = Buffer.from("no model at all");
/** A request that got no answer is asked again with the same key, as a client must. */
const ASK_AGAIN_MS = 100;

export interface WorldOptions {
  engine: EngineName;
  /** URL of a PostgreSQL database; null = SQLite. */
  database: string | null;
  /** Modules for both programs, beside this file, given by --import. */
  preload: readonly string[];
  env?: Readonly<Record<string, string>>;
  /** What the agent dials instead of the control plane itself. */
  dial?: (cloud: { port: number }) => Promise<string>;
}

/** A program that is started again whenever it ends, after the pause that the case wants. */
class Kept {
  readonly #start: () => Promise<Program>;
  program: Program;
  pauseMs: () => number = () => 0;
  #over = false;
  readonly done: Promise<void>;

  constructor(program: Program, start: () => Promise<Program>) {
    this.program = program;
    this.#start = start;
    this.done = this.#keep();
  }

  async #keep(): Promise<void> {
    for (;;) {
      await this.program.exited;
      if (this.#over) return;
      await new Promise((resolve) => setTimeout(resolve, this.pauseMs()));
      if (this.#over) return;
      this.program = await this.#start();
    }
  }

  release(): void {
    this.#over = true;
  }
}

export interface StepPlan {
  name: string;
  needs?: string[];
  holdMs: number;
}

export class CrashWorld {
  readonly cloud: TestCloud;
  readonly agent: TestAgent;
  readonly engine: SweptEngine;
  readonly kept: Readonly<Record<Victim, Kept>>;
  /** Id of the deployment that each case applies anew. */
  deployment = "";
  /** Generation that stands; its revision is the same number, since each apply brings a new one. */
  generation = 1;
  /** Idempotency keys of all runs asked for, and their ids. */
  readonly runs = new Map<string, string>();
  readonly #killFolder: string;

  private constructor(cloud: TestCloud, agent: TestAgent, engine: SweptEngine, killFolder: string) {
    this.cloud = cloud;
    this.agent = agent;
    this.engine = engine;
    this.#killFolder = killFolder;
    this.kept = {
      cloud: new Kept(cloud.program, async () => {
        void cloud.start().catch(() => undefined); // killed again while it starts: that is what happens here
        return cloud.program;
      }),
      agent: new Kept(agent.program, async () => agent.start()),
    };
  }

  static async start(t: Teardown, options: WorldOptions): Promise<CrashWorld> {
    const { database } = options;
    const engine = await startEngine(t, options.engine);
    const killFolder = tempDir(t, "kill-at");
    const env = { ...options.env, SALLYPORT_KILL_AT: killFolder };
    const nodeArgs = options.preload.flatMap((file) => ["--import", fileURLToPath(new URL(file, import.meta.url))]);
    const cloud = await TestCloud.start(t, {
      nodeArgs,
      env,
      args: database === null ? [] : ["--database", database],
    });
    const store = tempDir(t, "store");
    mkdirSync(join(store, "code"));
    writeFileSync(join(store, "code/step.mjs"), STEP);
    writeFileSync(join(store, "model.onnx"), MODEL);
    const agent = await connectAgent(t, cloud, POOL, {
      nodeArgs,
      env,
      ...(options.dial === undefined ? {} : { url: await options.dial(cloud) }),
      config: `
stores: [{ id: box, kind: fs, root: ${store} }]
${engine.config.replace("PORT", String(await freePort()))}
policy:
  ceilings: { concurrentRuns: 3, concurrentSteps: 3, stepTimeoutMs: 3600000, stepsPerRun: 10, streams: 32, deployments: 2, replicas: 4, cpus: 8, memoryBytes: 4294967296 }
  commands: ["pipeline.run", "run.*", "deployment.*"]
  engines: [${engine.name}]
  programs: [node]
  ${engine.policy}
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`,
    });
    const world = new CrashWorld(cloud, agent, engine, killFolder);
    t.teardown(() => world.release());
    const made = await cloud.api.json<DeploymentDetail>("/v1/deployments", {
      headers: { "idempotency-key": randomUUID() },
      json: { pool: POOL, name: "still", spec: world.#spec(1) },
    });
    world.deployment = made.id;
    await world.applied(1, 60_000);
    return world;
  }

  release(): void {
    for (const kept of Object.values(this.kept)) kept.release();
  }

  #spec(round: number) {
    return {
      model: { store: "box", path: "model.onnx", digest: `sha256:${createHash("sha256").update(MODEL).digest("hex")}` },
      engine: this.engine.name,
      resources: { cpus: 0.2, memoryBytes: 134_217_728 },
      env: { ROUND: String(round), ...(this.engine.sharesFiles ? { EFFECTS: this.engine.targets.starts } : {}) },
    };
  }

  // ---- killing

  arm(plan: KillPlan): void {
    // Whole at once: it may be read at any moment.
    const file = join(this.#killFolder, "plan");
    writeFileSync(`${file}.new`, JSON.stringify(plan));
    renameSync(`${file}.new`, file);
  }

  disarm(): void {
    rmSync(join(this.#killFolder, "plan"), { force: true });
  }

  /** Which event the kill came at; null when it has not come. */
  fired(id: string): string | null {
    const file = join(this.#killFolder, `fired-${id}`);
    return existsSync(file) ? readFileSync(file, "utf8") : null;
  }

  /** Resolves true when both programs run and are ready; false when they are not by then. */
  async up(untilMs: number): Promise<boolean> {
    for (;;) {
      const { agent, cloud } = this.kept;
      const running = agent.program.exit === undefined && cloud.program.exit === undefined;
      if (running && agent.program.stdout.includes('"msg":"started"')) {
        const answer = await this.cloud.api.call("/readyz").catch(() => null);
        if (answer?.status === 200) return true;
      }
      if (performance.now() > untilMs) return false;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  // ---- asking

  /** Until there is an answer; a refusal is one, "not now" is none. */
  async ask<T>(path: string, call: Parameters<TestCloud["api"]["call"]>[1], untilMs: number): Promise<T> {
    for (;;) {
      try {
        return await this.cloud.api.json<T>(path, call);
      } catch (error) {
        if (error instanceof ApiProblem && error.status < 500 && error.status !== 429) throw error;
        if (performance.now() > untilMs) throw new Error(`no answer to ${path} in time`, { cause: error });
        await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
      }
    }
  }

  /** Asks for a run; `name` is in the keys of its effects. */
  async submitRun(name: string, steps: readonly StepPlan[], untilMs: number): Promise<string> {
    const { targets, network, sharesFiles } = this.engine;
    const made = await this.ask<{ id: string }>(
      "/v1/runs",
      {
        headers: { "idempotency-key": name },
        json: {
          pool: POOL,
          pipeline: {
            name: "swept",
            engine: this.engine.name,
            outputs: { store: "box" },
            steps: steps.map((step) => ({
              name: step.name,
              needs: step.needs ?? [],
              program: "node",
              args: [
                "${inputs.code}",
                `${name}/${step.name}`,
                sharesFiles ? targets.file : "-",
                targets.url,
                String(step.holdMs),
                "${outputs.out}",
              ],
              inputs: { code: { store: "box", path: "code/step.mjs" } },
              outputs: { out: {} },
              ...(network === null ? {} : { network }),
            })),
          },
        },
      },
      untilMs,
    );
    this.runs.set(name, made.id);
    return made.id;
  }

  /** The next generation, which is a new revision: its replica begins once. */
  async submitApply(name: string, untilMs: number): Promise<number> {
    const next = this.generation + 1;
    await this.ask(
      `/v1/deployments/${this.deployment}`,
      {
        method: "PUT",
        headers: { "idempotency-key": name, "if-match": `"${this.generation}"` },
        json: { spec: this.#spec(next) },
      },
      untilMs,
    );
    this.generation = next;
    return next;
  }

  // ---- judging

  run(id: string): Promise<RunDetail> {
    return this.cloud.api.json<RunDetail>(`/v1/runs/${id}`);
  }

  applied(generation: number, withinMs: number): Promise<DeploymentDetail> {
    let last: DeploymentDetail | undefined;
    return waitFor(
      `generation ${generation} to be served`,
      async () => {
        last = await this.cloud.api.json<DeploymentDetail>(`/v1/deployments/${this.deployment}`);
        return (
          last.generation === generation &&
          last.appliedGeneration === generation &&
          last.state === "available" &&
          last.observed?.replicas.length === 1 &&
          last.observed.replicas[0]!.revision === last.revision &&
          last
        );
      },
      { timeoutMs: withinMs, everyMs: 100 },
    ).catch((cause: unknown) => {
      throw new Error(`stuck: deployment ${JSON.stringify({ ...last, spec: undefined, ceilings: undefined })}`, {
        cause,
      });
    });
  }

  async allRuns(untilMs = performance.now() + 60_000): Promise<Run[]> {
    const found: Run[] = [];
    for (let cursor = ""; ;) {
      const page = await this.ask<{ items: Run[]; nextCursor: string | null }>(
        `/v1/runs?limit=500${cursor}`,
        {},
        untilMs,
      );
      found.push(...page.items);
      if (page.nextCursor === null) return found;
      cursor = `&cursor=${encodeURIComponent(page.nextCursor)}`;
    }
  }

  /** What SQLite itself says of the files that were written through all the kills. Both programs must have ended. */
  integrity(): string[] {
    const files = [join(this.agent.state, "journal.db"), join(this.cloud.dir, "sallyport.db")];
    return files.filter(existsSync).flatMap((file) => {
      const db = new DatabaseSync(file);
      try {
        const [row] = db.prepare("PRAGMA integrity_check").all() as { integrity_check: string }[];
        return row?.integrity_check === "ok" ? [] : [`${file}: ${row?.integrity_check}`];
      } finally {
        db.close();
      }
    });
  }
}
