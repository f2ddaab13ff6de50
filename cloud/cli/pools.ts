// `sallyport pool`.
import type { Command } from "commander";
import type { Pool } from "../http/api.ts";
import type { Client } from "./client.ts";
import { EndWith, EXIT } from "./exit.ts";
import { formatOf, print } from "./output.ts";

export function poolCommands(program: Command, client: () => Client): void {
  const pool = program.command("pool").description("the pools of agents");

  pool
    .command("ls")
    .description("list pools")
    .option("-o, --output <format>", "table, json or name", "table")
    .action(async (options: { output: string }) => {
      print(
        await client().list<Pool>("/v1/pools"),
        formatOf(options.output),
        [
          { title: "POOL", of: (p) => p.name },
          { title: "AGENTS", of: (p) => `${p.agents.connected} of ${p.agents.total} connected` },
          { title: "MOST RUNS", of: (p) => (p.maxRuns === null ? "-" : String(p.maxRuns)) },
          { title: "ENGINES", of: (p) => p.engines.join(" ") || "-" },
        ],
        (p) => p.name,
      );
    });

  pool
    .command("limit")
    .description("limit how many runs of a pool go at a time; what has begun goes on")
    .argument("<pool>")
    .requiredOption("--max-runs <n>", "a number, or none")
    .action(async (name: string, options: { maxRuns: string }) => {
      const maxRuns = options.maxRuns === "none" ? null : Number(options.maxRuns);
      if (maxRuns !== null && (!Number.isInteger(maxRuns) || maxRuns < 1))
        throw new EndWith(EXIT.usage, `--max-runs ${options.maxRuns} is not a number of runs, nor none`);
      await client().json(`/v1/pools/${encodeURIComponent(name)}`, { method: "PATCH", json: { maxRuns } });
      process.stderr.write(
        maxRuns === null
          ? `pool ${name} has no limit of runs\n`
          : `pool ${name} takes ${maxRuns} ${maxRuns === 1 ? "run" : "runs"} at a time\n`,
      );
    });
}
