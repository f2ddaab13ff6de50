// `sallyport command`.
import type { Command as Commander } from "commander";
import type { Command, CommandDetail } from "../http/api.ts";
import type { Client } from "./client.ts";
import { age, formatOf, print, printOne } from "./output.ts";
import { tame } from "./tame.ts";

const FORMAT = ["-o, --output <format>", "table, json or name", "table"] as const;

export function commandCommands(program: Commander, client: () => Client): void {
  const command = program.command("command").description("what was asked of agents, and what became of it");
  command
    .command("ls")
    .description("list commands, newest first")
    .option("--state <state>")
    .option("--limit <n>", "at most this many", "50")
    .option(...FORMAT)
    .action(async (options: { state?: string; limit: string; output: string }) => {
      print(
        await client().list<Command>(
          `/v1/commands${options.state === undefined ? "" : `?state=${encodeURIComponent(options.state)}`}`,
          Number(options.limit) || 50,
        ),
        formatOf(options.output),
        [
          { title: "COMMAND", of: (c) => c.id },
          { title: "KIND", of: (c) => c.kind },
          {
            title: "STATE",
            of: (c) =>
              c.waiting !== null ? `${c.state} (${c.waiting.code})` : c.unknown ? `${c.state} (unknown)` : c.state,
          },
          { title: "POOL", of: (c) => c.pool.name },
          { title: "AGENT", of: (c) => c.agent?.name ?? "-" },
          { title: "BY", of: (c) => c.actor.name },
          { title: "AGE", of: (c) => age(c.createdAt) },
        ],
        (c) => c.id,
      );
    });
  command
    .command("show")
    .description("one command: who, what, why it waits, what came of it")
    .argument("<command>")
    .option(...FORMAT)
    .action(async (id: string, options: { output: string }) => {
      const found = await client().json<Command>(`/v1/commands/${encodeURIComponent(id)}`);
      printOne(
        found,
        formatOf(options.output),
        [
          ["command", found.id],
          ["kind", found.kind],
          ["resource", found.resource],
          [
            "state",
            found.unknown ? `${found.state}; unknown what became of it: its agent is not connected` : found.state,
          ],
          [
            "waiting",
            found.waiting === null ? null : `${found.waiting.code}: ${found.waiting.text} ${found.waiting.fix}`,
          ],
          ["pool", found.pool.name],
          ["agent", found.agent?.name ?? null],
          ["by", `${found.actor.name} (${found.actor.via})`],
          ["created", new Date(found.createdAt).toISOString()],
          ["accepted", found.acceptedAt === null ? null : new Date(found.acceptedAt).toISOString()],
          ["ended", found.endedAt === null ? null : new Date(found.endedAt).toISOString()],
          ["expires", new Date(found.expiresAt).toISOString()],
          [
            "error",
            found.error === null
              ? null
              : `${found.error.code}: ${found.error.message}${found.error.fix === undefined ? "" : ` ${found.error.fix}`}`,
          ],
          ["result", found.result === null || found.result === undefined ? null : JSON.stringify(found.result)],
        ],
        found.id,
      );
    });

  command
    .command("explain")
    .description("why a command waits or what became of it, what to do, and what happened to it so far")
    .argument("<command>")
    .option(...FORMAT)
    .action(async (id: string, options: { output: string }) => {
      const found = await client().json<CommandDetail>(`/v1/commands/${encodeURIComponent(id)}`);
      printOne(
        found,
        formatOf(options.output),
        [
          ["command", `${found.id} (${found.kind} on ${found.resource}, pool ${found.pool.name})`],
          ["state", found.unknown ? `${found.state}; what became of it is unknown` : found.state],
          ["waiting", found.waiting?.code ?? null],
          ["why", found.text],
          ["fix", found.fix],
          ["settled by", found.silence?.settles ?? null],
          ["priority", found.priority === 0 ? null : String(found.priority)],
          ["expires", found.state === "queued" ? new Date(found.expiresAt).toISOString() : null],
        ],
        found.id,
      );
      if (options.output !== "table") return;
      const queue = found.waiting?.queue;
      if (queue !== undefined) {
        process.stdout.write(`\nnumber ${queue.position} of ${queue.of} in the queue; the slots are held by\n`);
        for (const holder of queue.holders) process.stdout.write(`  ${holder.run}  ${tame(holder.text)}\n`);
      }
      process.stdout.write("\n");
      for (const event of found.history)
        process.stdout.write(`${new Date(event.at).toISOString()}  ${tame(event.text)}\n`);
    });

  command
    .command("lost")
    .description("declare that the silent agent which has it will never answer; nothing is stopped by that")
    .argument("<command>")
    .requiredOption("--reason <text>", "why; kept with the command")
    .action(async (id: string, options: { reason: string }) => {
      await client().json(`/v1/commands/${encodeURIComponent(id)}/lost`, {
        method: "POST",
        json: { reason: options.reason },
      });
      process.stderr.write(`${id} is lost; what its agent says of it later is kept beside that\n`);
    });
}
