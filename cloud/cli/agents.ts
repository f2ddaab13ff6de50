// `sallyport agent` and `sallyport enroll`.
import type { Command } from "commander";
import type { Agent, MadeEnrollment } from "../http/api.ts";
import type { Client } from "./client.ts";
import { EndWith, EXIT } from "./exit.ts";
import { age, formatOf, print, printOne } from "./output.ts";

export function agentCommands(program: Command, client: () => Client): void {
  const agent = program.command("agent").description("the agents of this workspace");
  const format = ["-o, --output <format>", "table, json or name", "table"] as const;
  const find = async (name: string): Promise<Agent> => {
    const agents = await client().list<Agent>("/v1/agents");
    const found = agents.find((a) => a.name === name || a.id === name);
    if (found === undefined)
      throw new EndWith(
        EXIT.notFound,
        `no agent ${name}; there ${agents.length === 1 ? "is" : "are"} ${agents.map((a) => a.name).join(", ") || "none"}`,
      );
    return found;
  };
  const show = (found: Agent, output: string) =>
    printOne(
      found,
      formatOf(output),
      [
        ["name", found.name],
        ["id", found.id],
        ["pool", found.pool.name],
        ["state", `${found.state}: ${found.stateReason}`],
        ["last seen", found.lastSeenAt === null ? "never" : `${age(found.lastSeenAt)} ago`],
        ["version", found.version],
        ["key", found.fingerprint],
        [
          "stores",
          found.status === null
            ? null
            : found.status.stores
                .map((s) => `${s.id} (${s.kind}: ${s.grants.join(", ") || "nothing granted"})`)
                .join(", "),
        ],
        ["programs", found.status === null ? null : found.status.programs.join(", ")],
        [
          "alarms",
          found.alarms.length === 0
            ? null
            : found.alarms.map((a) => `${new Date(a.at).toISOString()} ${a.code}: ${a.message}`).join("; "),
        ],
      ],
      found.name,
    );

  agent
    .command("ls")
    .description("list agents")
    .option(...format)
    .action(async (options: { output: string }) => {
      print(
        await client().list<Agent>("/v1/agents"),
        formatOf(options.output),
        [
          { title: "NAME", of: (a) => a.name },
          { title: "POOL", of: (a) => a.pool.name },
          { title: "STATE", of: (a) => a.state },
          { title: "LAST SEEN", of: (a) => (a.lastSeenAt === null ? "never" : `${age(a.lastSeenAt)} ago`) },
          {
            title: "RUNNING",
            of: (a) => (a.state === "connected" ? String(a.status?.running.length ?? "-") : "unknown"),
          },
          { title: "VERSION", of: (a) => a.version ?? "-" },
        ],
        (a) => a.name,
      );
    });
  agent
    .command("get")
    .description("one agent")
    .argument("<name>", "name or id")
    .option(...format)
    .action(async (name: string, options: { output: string }) => show(await find(name), options.output));
  agent
    .command("rename")
    .argument("<name>", "name or id")
    .argument("<new name>")
    .action(async (name: string, newName: string) => {
      const renamed = await client().json<Agent>(`/v1/agents/${(await find(name)).id}`, {
        method: "PATCH",
        json: { name: newName },
      });
      process.stderr.write(`${name} is now ${renamed.name}\n`);
    });
  agent
    .command("revoke")
    .description("cut the agent off, for good: its key is never accepted again")
    .argument("<name>", "name or id")
    .action(async (name: string) => {
      await client().json(`/v1/agents/${(await find(name)).id}/revoke`, { method: "POST", json: {} });
      process.stderr.write(`${name} is revoked\n`);
    });
  agent
    .command("rm")
    .description("remove an agent that is revoked or not connected")
    .argument("<name>", "name or id")
    .action(async (name: string) => {
      (await client().open(`/v1/agents/${(await find(name)).id}`, { method: "DELETE" })).resume();
      process.stderr.write(`${name} is removed\n`);
    });

  program
    .command("enroll")
    .description("make a single-use secret with which an agent joins a pool")
    .argument("<pool>", "made when there is none of that name")
    .option("--name <name>", "name of the agent")
    .option(...format)
    .action(async (pool: string, options: { name?: string; output: string }) => {
      const made = await client().make<MadeEnrollment>("/v1/enrollments", {
        pool,
        ...(options.name === undefined ? {} : { name: options.name }),
      });
      if (formatOf(options.output) === "json") process.stdout.write(`${JSON.stringify(made, null, 2)}\n`);
      else if (options.output === "name") process.stdout.write(`${made.secret}\n`);
      else {
        for (const { title, note, text } of made.commands)
          process.stdout.write(`# ${title}${note === undefined ? "" : `: ${note}`}\n${text}\n`);
        process.stderr.write(`works once, until ${new Date(made.expiresAt).toLocaleTimeString()}\n`);
      }
    });
}
