// `sallyport deployment request|logs`: what goes to replicas through the link, and what they wrote.
import { readFileSync } from "node:fs";
import type { Command as Commander } from "commander";
import type { DeploymentDetail } from "../http/api.ts";
import { textOf, type Client } from "./client.ts";
import { EndWith, EXIT } from "./exit.ts";
import { printRecords } from "./log-records.ts";
import { tame } from "./tame.ts";

type Find = (name: string, pool: string | undefined) => Promise<DeploymentDetail>;
const POOL = ["--pool <pool>", "pool of agents; needed only where several have a deployment of that name"] as const;

export function deploymentTrafficCommands(deployment: Commander, client: () => Client, find: Find): void {
  deployment
    .command("request")
    .description("send one request through the link and show the answer; neither is kept")
    .argument("<deployment>", "name or id")
    .option("-d, --data <json>", "the body: JSON, @file, or - for stdin; without one: GET the model's metadata")
    .option(
      "--path <path>",
      "of the Open Inference Protocol, below the endpoint; default: /v2/models/NAME/infer, or /v2/models/NAME without data",
    )
    .option("--timeout <seconds>", "longest wait for the answer", "30")
    .option(...POOL)
    .action(async (name: string, options: { data?: string; path?: string; timeout: string; pool?: string }) => {
      const timeoutMs = Number(options.timeout) * 1000;
      if (!(timeoutMs >= 100 && timeoutMs <= 120_000))
        throw new EndWith(EXIT.usage, `--timeout ${options.timeout}: between 0.1 and 120 seconds`);
      const body = options.data === undefined ? null : readData(options.data);
      const found = await find(name, options.pool);
      const query = new URLSearchParams({ method: body === null ? "GET" : "POST", timeoutMs: String(timeoutMs) });
      if (options.path !== undefined) query.set("path", options.path);
      const response = await client().open(`/v1/deployments/${found.id}/request?${query}`, {
        method: "POST",
        passes: (answer) => answer.headers["sallyport-replica"] !== undefined,
        ...(body === null
          ? {}
          : {
              body: chunks(body),
              headers: { "content-type": "application/json", "content-length": String(body.length) },
            }),
      });
      const status = Number(response.headers["sallyport-status"]);
      const text = await textOf(response);
      process.stdout.write(process.stdout.isTTY ? `${tame(text)}\n` : text);
      process.stderr.write(
        `replica ${response.headers["sallyport-replica"]} answered ${status} in ${response.headers["sallyport-took-ms"]} ms\n`,
      );
      if (!(status >= 200 && status < 300)) throw new EndWith(status === 400 ? EXIT.usage : EXIT.failed);
    });

  deployment
    .command("logs")
    .description("what replicas wrote: all of them, or one")
    .argument("<deployment>", "name or id")
    .argument("[replica]", "such as r1.0")
    .option("--start <n>", "which start of the replica, 1 is the first; default: the newest")
    .option("--tail <n>", "only the last N lines")
    .option("-f, --follow", "go on until that start has ended")
    .option(...POOL)
    .action(async (name: string, replica: string | undefined, options: LogOptions & { pool?: string }) => {
      for (const flag of ["start", "tail"] as const)
        if (options[flag] !== undefined && !(Number.isInteger(Number(options[flag])) && Number(options[flag]) > 0))
          throw new EndWith(EXIT.usage, `--${flag} ${options[flag]} is not a whole number above 0`);
      const found = await find(name, options.pool);
      const begun = (found.observed?.replicas ?? []).filter((one) => one.starts > 0).map((one) => one.name);
      const names = replica === undefined ? begun : [replica];
      if (names.length === 0)
        throw new EndWith(EXIT.notFound, `${found.name} has no replica that was started: ${found.stateReason}`);
      const show = (one: string) => printLog(client(), found, one, names.length > 1, options);
      if (options.follow === true) await Promise.all(names.map(show));
      else for (const one of names) await show(one);
    });
}

interface LogOptions {
  start?: string;
  tail?: string;
  follow?: boolean;
}

async function printLog(
  client: Client,
  found: DeploymentDetail,
  replica: string,
  labelled: boolean,
  options: LogOptions,
): Promise<void> {
  const query = new URLSearchParams({ follow: String(options.follow === true), limit: "100000" });
  if (options.start !== undefined) query.set("start", options.start);
  if (options.tail !== undefined) query.set("tail", options.tail);
  const path = `/v1/deployments/${found.id}/replicas/${encodeURIComponent(replica)}/logs?${query}`;
  await printRecords(await client.open(path), labelled ? replica : "");
}

function readData(data: string): Buffer {
  const file = data === "-" ? 0 : data.startsWith("@") ? data.slice(1) : null;
  if (file === null) return Buffer.from(data);
  try {
    return readFileSync(file);
  } catch (error) {
    throw new EndWith(
      EXIT.usage,
      `${file} cannot be read: ${(error as NodeJS.ErrnoException).code === "ENOENT" ? "there is no such file" : (error as Error).message}`,
    );
  }
}

async function* chunks(body: Buffer): AsyncGenerator<Buffer> {
  yield body;
}
