// For tests: the feature with everything real around it but the policy and the store, which are as small as they can be.
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, readdir, rename, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { pino } from "pino";
import { ConnectorError, pipelineSchema, systemClock, type ArtifactEntry, type CommandId, type PipelineInput, type RunId } from "@sallyport/protocol";
import type { CommandContext } from "../../commands/command.ts";
import { createProcessEngine } from "../../engines/process/index.ts";
import { openJournal } from "../../journal/sqlite-journal.ts";
import { LogStore } from "../../logs/index.ts";
import type { PolicyAction, PolicyGuard } from "../../policy/action.ts";
import { createRedactor } from "../../redaction/index.ts";
import type { ArtifactStore, WriteOptions } from "../../stores/store.ts";
import { createPipelines, type PipelinesDeps } from "./index.ts";

export function folderStore(root: string): ArtifactStore {
  const entry = async (path: string): Promise<ArtifactEntry> => {
    const info = await stat(join(root, path)).catch(() => {
      throw new ConnectorError("ARTIFACT_NOT_FOUND", `Nothing at ${path}.`);
    });
    const kind = info.isDirectory() ? "tree" : "file";
    return { name: path.split("/").at(-1)!, path, kind, sizeBytes: kind === "tree" ? null : info.size, modifiedAt: info.mtimeMs, version: null, mediaType: null };
  };
  return {
    id: "lake",
    kind: "folder",
    label: "a folder",
    async list(path) {
      const names = (await readdir(join(root, path))).sort();
      return { entries: await Promise.all(names.map((name) => entry(path === "" ? name : `${path}/${name}`))), nextCursor: null };
    },
    stat: entry,
    async read(path) {
      const { sizeBytes } = await entry(path);
      return { start: 0, lengthBytes: sizeBytes!, totalBytes: sizeBytes!, version: "", mediaType: "", modifiedAt: null, bytes: createReadStream(join(root, path)) };
    },
    async write(path, bytes, options: WriteOptions = {}) {
      const there = await stat(join(root, path)).catch(() => null);
      if (options.ifNoneMatch === "*" && there !== null) throw new ConnectorError("ARTIFACT_EXISTS", `${path} is taken.`);
      await mkdir(dirname(join(root, path)), { recursive: true });
      const chunks: Uint8Array[] = [];
      for await (const chunk of bytes) chunks.push(chunk);
      const all = Buffer.concat(chunks);
      await writeFile(join(root, `${path}.part`), all);
      await rename(join(root, `${path}.part`), join(root, path));
      return { version: "", sizeBytes: all.length, digest: `sha256:${createHash("sha256").update(all).digest("hex")}` };
    },
    async delete() {
      throw new Error("not for this test");
    },
  };
}

export interface TestAgentOptions {
  stateDir: string;
  storeDir: string;
  secrets?: Record<string, string>;
  concurrentSteps?: number;
  denied?: (action: PolicyAction) => boolean;
}

export async function testAgent(options: TestAgentOptions) {
  const clock = systemClock;
  const journal = await openJournal({ file: join(options.stateDir, "journal.db"), clock });
  const engine = createProcessEngine({ stateDir: options.stateDir, clock });
  const redactor = createRedactor();
  const logs = new LogStore({ stateDir: options.stateDir, redactor, clock, capBytesPerAttempt: 64 * 1024 * 1024, capBytes: 1e9 });
  const log = pino({ level: process.env["TEST_LOG"] ?? "silent" });
  const verdict = (action: PolicyAction) => {
    const allowed = options.denied?.(action) !== true;
    return { allowed, rule: "policy.test", reason: allowed ? "" : "The test's policy refuses this.", fix: allowed ? "" : "Ask the test." };
  };
  const policy: PolicyGuard = {
    decide: verdict,
    require: (action) => {
      const { allowed, rule, reason, fix } = verdict(action);
      if (!allowed) throw new ConnectorError("POLICY_DENIED", reason, { fix, details: { rule } });
    },
    digest: "",
    previewRows: 0,
    limit: (ceiling) => (ceiling === "concurrentSteps" ? (options.concurrentSteps ?? 4) : 1000),
  };
  const store = folderStore(options.storeDir);
  const deps: PipelinesDeps = {
    journal,
    engine,
    redactor,
    logs,
    policy,
    log,
    clock,
    stateDir: options.stateDir,
    workBytes: 1e9,
    graceMs: 300,
    stores: {
      ids: ["lake"],
      get: async () => store,
    },
    secrets: {
      resolve: async () => {
        throw new Error("not for this test");
      },
      named: async (name) => {
        const value = options.secrets?.[name];
        if (value === undefined) throw new ConnectorError("SECRET_UNKNOWN", `No secret ${name}.`);
        return { reveal: () => value, toString: () => "***", toJSON: () => "***" };
      },
    },
    programs: () => new Map([["sh", { path: "/bin/sh", args: ["-c"] }]]),
  };
  const pipelines = createPipelines(deps);
  const context = (command: CommandId, signal: AbortSignal): CommandContext => ({
    command,
    kind: "test",
    resource: "test",
    signal,
    log,
    clock,
    policy,
    upload: (async function* () {})(),
  });
  const kind = (name: string) => pipelines.kinds.find((k) => k.spec.kind === name)!;
  return {
    pipelines,
    journal,
    engine,
    logs,
    /** Checks, accepts and runs, as the runner does. */
    async run(command: CommandId, run: RunId, pipeline: PipelineInput, params: Record<string, string | number | boolean> = {}, signal = new AbortController().signal) {
      const input = { run, pipeline: pipelineSchema.parse(pipeline), params };
      kind("pipeline.run").check!(input, policy);
      const body = { encoding: "json", enc: "none", kid: null, data: "{}" } as const;
      await journal.accept({ id: command, kind: "pipeline.run", resource: `run:${run}`, intent: "{}", body, acceptedAt: 0, expires: 0 }, { incarnation: "i", sequence: 1 });
      return (await kind("pipeline.run").run(input, context(command, signal))).result;
    },
    async cancel(command: CommandId, run: RunId, own: CommandId) {
      return (await kind("run.cancel").run({ run, command }, context(own, new AbortController().signal))).result as { stopped: string[] };
    },
    async readLogs(input: Record<string, unknown>, signal = new AbortController().signal) {
      return await kind("run.logs").run(kind("run.logs").spec.input.parse(input), context("" as CommandId, signal));
    },
    async close() {
      engine.close();
      await journal.close();
    },
  };
}
export type TestAgent = Awaited<ReturnType<typeof testAgent>>;
