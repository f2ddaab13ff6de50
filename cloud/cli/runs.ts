// `sallyport run`.
import { readFileSync } from "node:fs";
import type { Command as Commander } from "commander";
import { parse } from "yaml";
import type { Run, RunDetail } from "../http/api.ts";
import type { Client } from "./client.ts";
import { EndWith, EXIT } from "./exit.ts";
import { printRecords } from "./log-records.ts";
import { age, formatOf, print, printOne } from "./output.ts";

const ENDED = ["succeeded", "failed", "cancelled"];
const FORMAT = ["-o, --output <format>", "table, json or name", "table"] as const;
const PARAM = [
  "-p, --param <name=value>",
  "a parameter; may be repeated",
  (text: string, all: string[]) => [...all, text],
  [] as string[],
] as const;
const PRIORITY = ["--priority <n>", "-100 to 100: of runs that wait, higher goes first"] as const;
const EXPIRES = ["--expires-in <time>", "give up when no agent took it for so long, e.g. 30m, 2h, 3d"] as const;
const NOT_BEFORE = ["--not-before <time>", "begin then at the earliest: an ISO time, or e.g. 90m from now"] as const;
const UNIT_MS: Record<string, number> = { s: 1000, m: 60_000, h: 3600_000, d: 24 * 3600_000 };

interface StartOptions {
  param: string[];
  priority?: string;
  expiresIn?: string;
  notBefore?: string;
  wait?: boolean;
  follow?: boolean;
  output: string;
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

export function runCommands(program: Commander, client: () => Client): void {
  const run = program.command("run").description("start, watch and stop runs of pipelines");

  run
    .command("start")
    .description("start a run of a pipeline")
    .argument("<file>", "the pipeline, YAML or JSON; - is stdin")
    .requiredOption("--pool <pool>", "pool of agents that runs it")
    .option(
      "--require <label=value>",
      "only an agent with this label; may be repeated",
      (text: string, all: string[]) => [...all, text],
      [] as string[],
    )
    .option(...PARAM)
    .option(...PRIORITY)
    .option(...EXPIRES)
    .option(...NOT_BEFORE)
    .option("--wait", "wait for the end; exit code 1 unless it succeeds")
    .option("--follow", "show the logs of all steps, and wait")
    .option(...FORMAT)
    .action(async (file: string, options: StartOptions & { pool: string; require: string[] }) =>
      started(
        await client().make<RunDetail>("/v1/runs", {
          pool: options.pool,
          pipeline: readPipeline(file),
          ...(options.require.length === 0 ? {} : { requires: Object.fromEntries(options.require.map(readLabel)) }),
          ...readStart(options),
        }),
        options,
      ),
    );

  run
    .command("rerun")
    .description("start a run again: the same pipeline in the same pool, its parameters as given or as they were")
    .argument("<run>")
    .option(...PARAM)
    .option(...PRIORITY)
    .option(...EXPIRES)
    .option(...NOT_BEFORE)
    .option("--wait", "wait for the end; exit code 1 unless it succeeds")
    .option("--follow", "show the logs of all steps, and wait")
    .option(...FORMAT)
    .action(async (id: string, options: StartOptions) =>
      started(await client().make<RunDetail>(`${runPath(id)}/rerun`, readStart(options)), options),
    );

  async function started(made: RunDetail, options: StartOptions): Promise<void> {
    const format = formatOf(options.output);
    if (format === "json" && options.wait !== true && options.follow !== true)
      process.stdout.write(`${JSON.stringify(made, null, 2)}\n`);
    else process.stdout.write(`${made.id}\n`);
    const sayWaiting = waitingWords();
    sayWaiting(made);
    if (options.follow === true) await follow(client(), made.id, sayWaiting);
    if (options.follow === true || options.wait === true) await conclude(client(), made.id, false, sayWaiting);
  }

  run
    .command("ls")
    .description("list runs, newest first")
    .option("--limit <n>", "at most this many", "50")
    .option(...FORMAT)
    .action(async (options: { limit: string; output: string }) => {
      const limit = Number(options.limit);
      if (!Number.isInteger(limit) || limit < 1)
        throw new EndWith(EXIT.usage, `--limit ${options.limit} is not a number of runs`);
      print(
        await client().list<Run>("/v1/runs", limit),
        formatOf(options.output),
        [
          { title: "RUN", of: (r) => r.id },
          { title: "PIPELINE", of: (r) => r.pipeline },
          { title: "STATE", of: (r) => (r.waiting === null ? r.state : `${r.state} (${r.waiting.code})`) },
          { title: "STEPS", of: (r) => `${r.stepsDone}/${r.stepsTotal}` },
          { title: "AGENT", of: (r) => r.agent?.name ?? "-" },
          { title: "BY", of: (r) => r.actor.name },
          { title: "AGE", of: (r) => age(r.createdAt) },
        ],
        (r) => r.id,
      );
    });

  run
    .command("get")
    .description("one run with its steps")
    .argument("<run>")
    .option(...FORMAT)
    .action(async (id: string, options: { output: string }) =>
      showRun(await client().json<RunDetail>(runPath(id)), options.output),
    );

  run
    .command("watch")
    .description("say what changes until the run has ended; exit code 1 unless it succeeds")
    .argument("<run>")
    .action(async (id: string) => {
      await conclude(client(), id, true);
    });

  run
    .command("logs")
    .description("the log of a run: of all steps, or of one")
    .argument("<run>")
    .option("--step <step>")
    .option("--attempt <n>", "default: the newest")
    .option("--tail <n>", "only the last N lines")
    .option("-f, --follow", "go on until the step has ended")
    .action(async (id: string, options: { step?: string; attempt?: string; tail?: string; follow?: boolean }) => {
      const found = await client().json<RunDetail>(runPath(id));
      const names = options.step === undefined ? found.spec.steps.map((step) => step.name) : [options.step];
      if (options.step !== undefined && !found.spec.steps.some((step) => step.name === options.step)) {
        throw new EndWith(
          EXIT.notFound,
          `${id} has no step ${options.step}; its steps are ${found.spec.steps.map((step) => step.name).join(", ")}`,
        );
      }
      if (options.follow === true && options.step === undefined) return follow(client(), id);
      for (const name of names) {
        if (!found.attempts.some((attempt) => attempt.step === name)) continue;
        await printLog(client(), id, name, names.length > 1, {
          follow: options.follow === true,
          ...(options.attempt === undefined ? {} : { attempt: options.attempt }),
          ...(options.tail === undefined ? {} : { tail: options.tail }),
        });
      }
    });

  run
    .command("cancel")
    .description("stop a run: steps and all they started")
    .argument("<run>")
    .option("--wait", "wait until it has stopped")
    .action(async (id: string, options: { wait?: boolean }) => {
      await client().json(`${runPath(id)}/cancel`, { method: "POST", json: {} });
      process.stderr.write(`asked for the end of ${id}\n`);
      if (options.wait === true) await until(client(), id);
    });
}

function runPath(id: string): string {
  if (!/^run_[0-9a-f]{32}$/.test(id))
    throw new EndWith(
      EXIT.usage,
      `${id} is not a run; those are run_ and 32 hex digits. List them with: sallyport run ls`,
    );
  return `/v1/runs/${id}`;
}

function readPipeline(file: string): unknown {
  let text: string;
  try {
    text = readFileSync(file === "-" ? 0 : file, "utf8");
  } catch (error) {
    throw new EndWith(
      EXIT.usage,
      `${file} cannot be read: ${(error as NodeJS.ErrnoException).code === "ENOENT" ? "there is no such file" : (error as Error).message}`,
    );
  }
  try {
    return parse(text);
  } catch (error) {
    throw new EndWith(EXIT.usage, `${file} is neither YAML nor JSON: ${(error as Error).message.split("\n")[0]}`);
  }
}

/** `90m`, `2h`; null: not of that form. */
function readDuration(text: string): number | null {
  const found = /^(\d+(?:\.\d+)?)([smhd])$/.exec(text);
  return found === null ? null : Math.round(Number(found[1]) * UNIT_MS[found[2]!]!);
}

function readStart(options: StartOptions): Record<string, unknown> {
  const priority = options.priority === undefined ? undefined : Number(options.priority);
  if (priority !== undefined && !Number.isInteger(priority))
    throw new EndWith(EXIT.usage, `--priority ${options.priority} is not a whole number from -100 to 100`);
  const expiresInMs = options.expiresIn === undefined ? undefined : readDuration(options.expiresIn);
  if (expiresInMs === null)
    throw new EndWith(EXIT.usage, `--expires-in ${options.expiresIn}: write a number with s, m, h or d, such as 2h`);
  let notBefore: number | undefined;
  if (options.notBefore !== undefined) {
    const after = readDuration(options.notBefore);
    notBefore = after === null ? Date.parse(options.notBefore) : Date.now() + after;
    if (!Number.isFinite(notBefore))
      throw new EndWith(
        EXIT.usage,
        `--not-before ${options.notBefore}: write a time such as 2030-01-31T18:00:00Z, or 90m for in 90 minutes`,
      );
  }
  return {
    params: Object.fromEntries(options.param.map(readParam)),
    ...(priority === undefined ? {} : { priority }),
    ...(expiresInMs === undefined ? {} : { expiresInMs }),
    ...(notBefore === undefined ? {} : { notBefore }),
  };
}

function readLabel(text: string): [string, string] {
  const at = text.indexOf("=");
  if (at < 1) throw new EndWith(EXIT.usage, `--require ${text}: write label=value`);
  return [text.slice(0, at), text.slice(at + 1)];
}

/** Numbers and booleans as such, anything else as text. */
function readParam(text: string): [string, string | number | boolean] {
  const at = text.indexOf("=");
  if (at < 1) throw new EndWith(EXIT.usage, `--param ${text}: write name=value`);
  const value = text.slice(at + 1);
  const number = Number(value);
  return [
    text.slice(0, at),
    value === "true" ? true : value === "false" ? false : value !== "" && Number.isFinite(number) ? number : value,
  ];
}

function showRun(found: RunDetail, output: string): void {
  const format = formatOf(output);
  printOne(
    found,
    format,
    [
      ["run", found.id],
      ["pipeline", found.pipeline],
      ["state", found.state],
      ["waiting", found.waiting === null ? null : `${found.waiting.code}: ${found.waiting.text} ${found.waiting.fix}`],
      ["error", found.error === null ? null : `${found.error.code}: ${found.error.message}`],
      ["pool", found.pool.name],
      ["agent", found.agent?.name ?? null],
      ["by", `${found.actor.name} (${found.actor.via})`],
      [
        "params",
        Object.entries(found.params)
          .map(([name, value]) => `${name}=${value}`)
          .join(" ") || null,
      ],
      ["priority", found.priority === 0 ? null : String(found.priority)],
      ["not before", found.notBefore > found.createdAt ? new Date(found.notBefore).toISOString() : null],
      ["repeats", found.rerunOf],
    ],
    found.id,
  );
  if (format !== "table") return;
  process.stdout.write("\n");
  print(
    found.attempts,
    "table",
    [
      { title: "STEP", of: (a) => a.step },
      { title: "ATTEMPT", of: (a) => String(a.attempt) },
      {
        title: "STATE",
        of: (a) =>
          a.retryAt !== null ? `${a.state}; ${again(a.retryAt)}` : a.adopted ? `${a.state} (taken over)` : a.state,
      },
      {
        title: "TOOK",
        of: (a) => (a.startedAt === null ? "-" : `${(((a.endedAt ?? Date.now()) - a.startedAt) / 1000).toFixed(1)} s`),
      },
      { title: "OUTPUTS", of: (a) => a.outputs.map((output) => `${output.store}/${output.path}`).join(" ") || "-" },
    ],
    (a) => a.step,
  );
}

/** When the next attempt of a step begins. */
function again(atMs: number): string {
  const s = Math.ceil((atMs - Date.now()) / 1000);
  return s > 0 ? `tried again in ${s} s` : "tried again now";
}

async function printLog(
  client: Client,
  id: string,
  step: string,
  prefixed: boolean,
  options: { follow: boolean; attempt?: string; tail?: string },
): Promise<void> {
  const query = new URLSearchParams({ follow: String(options.follow), limit: "100000" });
  if (options.attempt !== undefined) query.set("attempt", options.attempt);
  if (options.tail !== undefined) query.set("tail", options.tail);
  const response = await client.open(`${runPath(id)}/steps/${encodeURIComponent(step)}/logs?${query}`);
  await printRecords(response, prefixed ? step : "");
}

/** Says why a run waits, each reason once. An offer that is under way is no reason yet: it is answered within a moment. */
function waitingWords(): (run: RunDetail) => void {
  let said = "";
  return ({ waiting }) => {
    if (waiting === null || waiting.code === "OFFERED" || waiting.code === said) return;
    said = waiting.code;
    process.stderr.write(`waiting: ${waiting.text} ${waiting.fix}\n`);
  };
}

/** Each step's log in turn, as they begin. */
async function follow(client: Client, id: string, say: (run: RunDetail) => void = waitingWords()): Promise<void> {
  const shown = new Set<string>();
  for (;;) {
    const now = await client.json<RunDetail>(runPath(id));
    say(now);
    const next = now.attempts.find(
      (attempt) => attempt.state !== "skipped" && !shown.has(`${attempt.step}.${attempt.attempt}`),
    );
    if (next !== undefined) {
      shown.add(`${next.step}.${next.attempt}`);
      await printLog(client, id, next.step, true, { follow: true, attempt: String(next.attempt) });
    } else if (ENDED.includes(now.state)) return;
    else await pause(500);
  }
}

async function until(client: Client, id: string, say: (run: RunDetail) => void = () => {}): Promise<RunDetail> {
  for (;;) {
    const now = await client.json<RunDetail>(runPath(id));
    say(now);
    if (ENDED.includes(now.state)) return now;
    await pause(500);
  }
}

/** Waits for the end, says it, and ends with 1 unless the run succeeded. */
async function conclude(
  client: Client,
  id: string,
  talk = false,
  say: (run: RunDetail) => void = () => {},
): Promise<void> {
  let last = "";
  let saidAt = performance.now();
  const ended = await until(client, id, (run) => {
    say(run);
    const line = `${run.state}${run.waiting === null ? "" : ` (${run.waiting.code}: ${run.waiting.text})`}, ${run.stepsDone} of ${run.stepsTotal} steps`;
    // something new, or a sign of life off a terminal
    if ((talk && line !== last) || performance.now() - saidAt > 10_000) {
      process.stderr.write(`${line}\n`);
      saidAt = performance.now();
    }
    last = line;
  });
  if (ended.state === "succeeded") process.stderr.write(`${id} succeeded\n`);
  else
    throw new EndWith(
      EXIT.failed,
      `${id} ${ended.state}${ended.error === null ? "" : `: ${ended.error.message} (${ended.error.code})`}`,
    );
}
