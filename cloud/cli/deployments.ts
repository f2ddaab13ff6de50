// `sallyport deployment`: deploy a model, look, compare, scale, roll back, remove. Requests and logs: deployment-traffic.ts.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { nameSchema } from "@sallyport/protocol";
import type { Command as Commander } from "commander";
import { parse } from "yaml";
import type { Deployment, DeploymentDetail, DeploymentDiff, DeploymentRevision } from "../http/api.ts";
import type { Client } from "./client.ts";
import { deploymentTrafficCommands } from "./deployment-traffic.ts";
import { changesAsText, showDeployment } from "./deployment-text.ts";
import { until, untilGone } from "./deployment-wait.ts";
import { EndWith, EXIT } from "./exit.ts";
import { age, formatOf, print } from "./output.ts";
import { tame } from "./tame.ts";

const FORMAT = ["-o, --output <format>", "table, json or name", "table"] as const;
const POOL = ["--pool <pool>", "pool of agents; needed only where several have a deployment of that name"] as const;
const WAIT = [
  "--wait",
  "wait until it stands; exit code 1 when it cannot get there by itself, 8 when it takes longer",
] as const;
const TIMEOUT = ["--timeout <seconds>", "longest wait", "300"] as const;

const APPLY_HELP = `
A file, with every field; those with a value here that are left out have this one:
  pool: lab
  name: digits                  # part of the endpoint's address: 1 to 63 of a-z, 0-9, '.', '_' and '-'
  spec:
    model: { store: lake, path: models/digits.onnx, digest: "sha256:<64 hex digits>" } # no default
    runtime: onnx
    engine: process             # or docker
    replicas: 1                 # left out means 1 again, also after a scale
    resources: { cpus: 1, memoryBytes: 536870912 } # of each replica
    env: {}                     # NAME: value
    secrets: {}                 # NAME: the name of a secret that the agent has and its policy allows

The digest of a file: sallyport artifact stat --digest lab/lake/models/digits.onnx`;

interface Wanted {
  pool: string;
  name: string;
  spec: unknown;
}

export function deploymentCommands(program: Commander, client: () => Client): void {
  const deployment = program.command("deployment").description("models that are served in the agents' network");

  deployment
    .command("apply")
    .description("deploy a model, or change what is deployed: the whole of what is wanted")
    .requiredOption("-f, --file <file>", "YAML or JSON: {pool, name, spec}, or a spec alone; - is stdin")
    .option("--pool <pool>", "instead of the file's")
    .option("--name <name>", "instead of the file's")
    .option(...WAIT)
    .option(...TIMEOUT)
    .option(...FORMAT)
    .addHelpText("after", APPLY_HELP)
    .action(async (options: FileOptions & WaitOptions) => {
      const format = formatOf(options.output);
      const wanted = readWanted(options);
      const there = await named(client(), wanted.name, wanted.pool);
      const made =
        there === null
          ? await client().make<DeploymentDetail>("/v1/deployments", wanted)
          : await applied(client(), there, wanted.spec);
      await conclude(client(), made, { ...options, format });
    });

  deployment
    .command("diff")
    .description("what an apply of this file would change; exit code 0: nothing, 1: something")
    .requiredOption("-f, --file <file>", "as for apply")
    .option("--pool <pool>", "instead of the file's")
    .option("--name <name>", "instead of the file's")
    .option(...FORMAT)
    .action(async (options: FileOptions) => {
      const format = formatOf(options.output);
      const wanted = readWanted(options);
      const there = await named(client(), wanted.name, wanted.pool);
      if (there === null)
        throw new EndWith(EXIT.failed, `pool ${wanted.pool} has no deployment ${wanted.name}: an apply would make it`);
      const diff = await diffOf(client(), there, wanted.spec);
      if (format === "json") process.stdout.write(`${JSON.stringify(diff, null, 2)}\n`);
      else if (format === "name") process.stdout.write(diff.changes.map(({ path }) => `${path}\n`).join(""));
      else {
        process.stdout.write(changesAsText(diff));
        sayRefusals(diff);
      }
      if (diff.changes.length > 0) throw new EndWith(EXIT.failed);
    });

  deployment
    .command("ls")
    .description("list deployments, newest first")
    .option("--pool <pool>", "only of this pool")
    .option("--removed", "those that were removed, instead")
    .option(...FORMAT)
    .action(async (options: { pool?: string; removed?: boolean; output: string }) => {
      const query = new URLSearchParams({
        ...(options.pool === undefined ? {} : { pool: options.pool }),
        ...(options.removed === true ? { removed: "true" } : {}),
      });
      print(
        await client().list<Deployment>(`/v1/deployments?${query}`),
        formatOf(options.output),
        [
          { title: "NAME", of: (d) => d.name },
          { title: "POOL", of: (d) => d.pool.name },
          { title: "STATE", of: stateOf },
          { title: "READY", of: (d) => (d.removedAt === null ? `${d.replicasReady ?? "?"}/${d.spec.replicas}` : "-") },
          { title: "REVISION", of: (d) => String(d.revision) },
          { title: "AGENT", of: (d) => d.agent?.name ?? "-" },
          { title: "BY", of: (d) => d.actor.name },
          { title: "AGE", of: (d) => age(d.createdAt) },
        ],
        (d) => d.name,
      );
    });

  deployment
    .command("get")
    .description("one deployment: replicas, conditions, endpoint")
    .argument("<deployment>", "name or id")
    .option(...POOL)
    .option(...FORMAT)
    .action(async (name: string, options: { pool?: string; output: string }) =>
      showDeployment(await find(client(), name, options.pool), formatOf(options.output)),
    );

  deployment
    .command("scale")
    .description("want another number of replicas; none is restarted by that")
    .argument("<deployment>", "name or id")
    .argument("<replicas>", "how many; 0 keeps the endpoint and serves nothing")
    .option(...POOL)
    .option(...WAIT)
    .option(...TIMEOUT)
    .option(...FORMAT)
    .action(async (name: string, replicas: string, options: { pool?: string } & WaitOptions) => {
      const format = formatOf(options.output);
      const found = await find(client(), name, options.pool);
      const made = await changed(client(), found, "POST", "/scale", { replicas: whole(replicas, "replicas", 0) });
      await conclude(client(), made, { ...options, format });
    });

  deployment
    .command("rollback")
    .description("apply the content of an earlier revision again, as a new one")
    .argument("<deployment>", "name or id")
    .option("--to <revision>", "default: the newest one that differs from what is wanted now")
    .option(...POOL)
    .option(...WAIT)
    .option(...TIMEOUT)
    .option(...FORMAT)
    .action(async (name: string, options: { to?: string; pool?: string } & WaitOptions) => {
      const format = formatOf(options.output);
      const found = await find(client(), name, options.pool);
      const revision = options.to === undefined ? await before(client(), found) : whole(options.to, "--to", 1);
      const made = await changed(client(), found, "POST", "/rollback", { revision });
      process.stderr.write(`${made.name}: revision ${made.revision} repeats revision ${revision}\n`);
      await conclude(client(), made, { ...options, format });
    });

  deployment
    .command("revisions")
    .description("what its replicas were made from, newest first")
    .argument("<deployment>", "name or id")
    .option(...POOL)
    .option(...FORMAT)
    .action(async (name: string, options: { pool?: string; output: string }) => {
      const found = await find(client(), name, options.pool);
      print(
        await client().list<DeploymentRevision>(`/v1/deployments/${found.id}/revisions`),
        formatOf(options.output),
        [
          { title: "REVISION", of: (r) => `${r.revision}${r.revision === found.revision ? " *" : ""}` },
          { title: "REPEATS", of: (r) => (r.from === null ? "-" : String(r.from)) },
          { title: "MODEL", of: (r) => `${r.spec.model.store}/${r.spec.model.path}` },
          { title: "DIGEST", of: (r) => r.spec.model.digest.slice(0, 19) },
          { title: "ENGINE", of: (r) => r.spec.engine },
          { title: "BY", of: (r) => r.actor.name },
          { title: "AGE", of: (r) => age(r.createdAt) },
        ],
        (r) => String(r.revision),
      );
    });

  deployment
    .command("rm")
    .description("remove a deployment: its replicas are stopped, its endpoint is gone")
    .argument("<deployment>", "name or id")
    .option("-y, --yes", "do not ask")
    .option(...POOL)
    .option("--wait", "wait until nothing of it runs")
    .option(...TIMEOUT)
    .action(async (name: string, options: { yes?: boolean; pool?: string; wait?: boolean; timeout: string }) => {
      const found = await find(client(), name, options.pool);
      if (options.yes !== true) await confirm(`Remove ${found.name} of pool ${found.pool.name} and stop its replicas?`);
      const gone = await changed(client(), found, "DELETE", "");
      if (gone.removedAt !== null) return void process.stderr.write(`${found.name} is removed\n`);
      process.stderr.write(`asked for the removal of ${found.name}\n`);
      if (options.wait === true) await untilGone(client(), gone, seconds(options.timeout));
    });

  deploymentTrafficCommands(deployment, client, (name, pool) => find(client(), name, pool));
}

const stateOf = ({ removedAt, state, waiting }: Deployment): string =>
  removedAt !== null ? "removed" : waiting === null ? state : `${state} (${waiting.code})`;

interface FileOptions {
  file: string;
  pool?: string;
  name?: string;
  output: string;
}
interface WaitOptions {
  wait?: boolean;
  timeout: string;
  output: string;
}

/** After a change: its id for programs, words for people, and the wait when it was asked for. */
async function conclude(
  client: Client,
  made: DeploymentDetail,
  options: { wait?: boolean; timeout: string; format: ReturnType<typeof formatOf> },
): Promise<void> {
  const { format } = options;
  if (format !== "json") process.stdout.write(`${format === "name" ? made.name : made.id}\n`);
  process.stderr.write(
    tame(
      `${made.name}: generation ${made.generation}, revision ${made.revision}, ${made.state}: ${made.stateReason}\n`,
    ),
  );
  const last = options.wait === true ? await until(client, made, seconds(options.timeout)) : made;
  if (format === "json") process.stdout.write(`${JSON.stringify(last, null, 2)}\n`);
}

async function applied(client: Client, there: Deployment, spec: unknown): Promise<DeploymentDetail> {
  const diff = await diffOf(client, there, spec);
  process.stderr.write(changesAsText(diff));
  sayRefusals(diff);
  return changed(client, there, "PUT", "", { spec });
}

function sayRefusals(diff: DeploymentDiff): void {
  for (const { path, message } of diff.refusals) process.stderr.write(tame(`will be refused: ${path}: ${message}\n`));
}

const diffOf = (client: Client, of: Deployment, spec: unknown): Promise<DeploymentDiff> =>
  client.json<DeploymentDiff>(`/v1/deployments/${of.id}/diff`, { method: "POST", json: { spec } });

/** Under If-Match of what was read: whoever was faster is not overwritten. */
const changed = (
  client: Client,
  from: Deployment,
  method: string,
  path: string,
  json?: unknown,
): Promise<DeploymentDetail> =>
  client.json<DeploymentDetail>(`/v1/deployments/${from.id}${path}`, {
    method,
    ...(json === undefined ? {} : { json }),
    headers: { "if-match": `"${from.generation}"` },
  });

async function named(client: Client, name: string, pool: string | undefined): Promise<Deployment | null> {
  const query = new URLSearchParams({ name, ...(pool === undefined ? {} : { pool }) });
  const found = await client.list<Deployment>(`/v1/deployments?${query}`);
  if (found.length > 1)
    throw new EndWith(
      EXIT.conflict,
      `pools ${found.map((one) => one.pool.name).join(", ")} have a deployment ${name} each: add --pool`,
    );
  return found[0] ?? null;
}

/** By name, or by id. */
async function find(client: Client, name: string, pool: string | undefined): Promise<DeploymentDetail> {
  const id = /^dep_[0-9a-f]{32}$/.test(name)
    ? name
    : nameSchema.safeParse(name).success
      ? (await named(client, name, pool))?.id
      : undefined;
  if (id === undefined) {
    const others = (await client.list<Deployment>("/v1/deployments")).map((one) => one.name);
    throw new EndWith(
      EXIT.notFound,
      `no deployment ${name}${pool === undefined ? "" : ` in pool ${pool}`}; there ${others.length === 1 ? "is" : "are"} ${others.join(", ") || "none"}`,
    );
  }
  return client.json<DeploymentDetail>(`/v1/deployments/${id}`);
}

/** The newest revision before the wanted one with other content: not one that it repeats. */
async function before(client: Client, found: Deployment): Promise<number> {
  const revisions = await client.list<DeploymentRevision>(`/v1/deployments/${found.id}/revisions`);
  const now = revisions.find((one) => one.revision === found.revision);
  const content = ({ spec: { replicas: _, ...rest } }: DeploymentRevision): string => JSON.stringify(rest);
  const earlier = revisions.find(
    (one) => one.revision < found.revision && (now === undefined || content(one) !== content(now)),
  );
  if (earlier === undefined)
    throw new EndWith(EXIT.conflict, `${found.name} has no earlier revision with other content to go back to`);
  return earlier.revision;
}

function readWanted(options: FileOptions): Wanted {
  const value = readDocument(options.file);
  const file = options.file === "-" ? "stdin" : options.file;
  const bare = "model" in value && !("spec" in value);
  const spec = bare ? value : value["spec"];
  const pool = options.pool ?? (bare ? undefined : value["pool"]);
  const name = options.name ?? (bare ? undefined : value["name"]);
  if (spec === undefined) throw new EndWith(EXIT.usage, `${file} has no spec: it needs pool, name and spec`);
  if (typeof pool !== "string") throw new EndWith(EXIT.usage, `${file} names no pool: add --pool <pool>`);
  if (typeof name !== "string") throw new EndWith(EXIT.usage, `${file} has no name: add --name <name>`);
  if (!nameSchema.safeParse(name).success)
    throw new EndWith(
      EXIT.usage,
      `name: ${name} is not 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit`,
    );
  return { pool, name, spec };
}

function readDocument(from: string): Record<string, unknown> {
  const file = from === "-" ? "stdin" : from;
  let text: string;
  try {
    text = readFileSync(from === "-" ? 0 : from, "utf8");
  } catch (error) {
    throw new EndWith(
      EXIT.usage,
      `${file} cannot be read: ${(error as NodeJS.ErrnoException).code === "ENOENT" ? "there is no such file" : (error as Error).message}`,
    );
  }
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    throw new EndWith(EXIT.usage, `${file} is neither YAML nor JSON: ${(error as Error).message.split("\n")[0]}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw new EndWith(EXIT.usage, `${file} holds no deployment: it needs pool, name and spec`);
  return value as Record<string, unknown>;
}

function whole(text: string, what: string, least: number): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isInteger(value) || value < least)
    throw new EndWith(EXIT.usage, `${what}: ${text} is not a whole number of at least ${least}`);
  return value;
}
const seconds = (text: string): number => whole(text, "--timeout", 1) * 1000;

async function confirm(question: string): Promise<void> {
  if (!process.stdin.isTTY || !process.stderr.isTTY)
    throw new EndWith(EXIT.usage, "nobody can be asked here: add --yes to remove it");
  const reader = createInterface({ input: process.stdin, output: process.stderr });
  const answer = await reader.question(`${question} [y/N] `);
  reader.close();
  if (!/^y(es)?$/i.test(answer.trim())) throw new EndWith(EXIT.failed, "nothing was removed");
}
