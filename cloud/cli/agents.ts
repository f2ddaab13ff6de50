// `sallyport agent` and `sallyport enroll`.
import type { Command } from "commander";
import type { Agent, AgentLink, Connection, MadeEnrollment } from "../http/api.ts";
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
        ["link", found.link === null ? null : linkText(found, found.link)],
        ["lanes", found.link === null ? null : lanesText(found.link)],
        ["clock", skewText(found)],
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
    .command("connections")
    .description("how it was connected: each session and refusal, newest first, with why it ended")
    .argument("<name>", "name or id")
    .option("-n, --number <n>", "how many", "20")
    .option("-o, --output <format>", "table or json", "table")
    .action(async (name: string, options: { number: string; output: string }) => {
      const limit = Number(options.number);
      if (!Number.isInteger(limit) || limit < 1 || limit > 500)
        throw new EndWith(EXIT.usage, `-n ${options.number} is not a number from 1 to 500`);
      const { id } = await find(name);
      const { items } = await client().json<{ items: Connection[] }>(`/v1/agents/${id}/connections?limit=${limit}`);
      const tookMs = (one: Connection) => (one.endedAt ?? Date.now()) - one.at;
      print(
        items,
        formatOf(options.output),
        [
          { title: "BEGAN", of: (one) => new Date(one.at).toISOString().replace(/\.\d+Z$/, "Z") },
          { title: "LASTED", of: (one) => (one.session === null ? "refused" : lasted(tookMs(one))) },
          { title: "FROM", of: (one) => one.remoteAddress ?? "-" },
          { title: "VERSION", of: (one) => one.version ?? "-" },
          { title: "CODE", of: (one) => one.code ?? "connected" },
          { title: "WHY", of: (one) => `${one.message ?? ""}${one.times > 1 ? ` (${one.times} times)` : ""}` },
        ],
        (one) => String(one.no),
      );
    });
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
    .command("rotate-key")
    .description("have the agent change its key for a new one")
    .argument("<name>", "name or id")
    .action(async (name: string) => {
      await client().json(`/v1/agents/${(await find(name)).id}/rotate-key`, { method: "POST", json: {} });
      process.stderr.write(`${name} has a new key\n`);
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

const lasted = (ms: number): string =>
  ms < 60_000
    ? `${(ms / 1000).toFixed(1)} s`
    : ms < 5_400_000
      ? `${Math.round(ms / 60_000)} min`
      : `${(ms / 3_600_000).toFixed(1)} h`;

function linkText({ rttMs, sessions }: Agent, { roundTrip, streams }: AgentLink): string {
  const now = rttMs === null ? "round trip not measured yet" : `round trip ${rttMs.toFixed(1)} ms`;
  const p95 = roundTrip === null ? "" : ` (p95 ${roundTrip.p95Ms.toFixed(1)} ms)`;
  return `${now}${p95}, ${streams} streams, connected ${sessions} ${sessions === 1 ? "time" : "times"} since it joined`;
}

function lanesText({ sent, received, inFlightBytes, queuedBytes }: AgentLink): string {
  const lanes = (["control", "interactive", "bulk"] as const).map(
    (lane) => `${lane} ${sent[lane].bytes} B to it, ${received[lane].bytes} B from it`,
  );
  return `${lanes.join("; ")}; ${inFlightBytes} B in flight, ${queuedBytes.interactive + queuedBytes.bulk} B queued`;
}

/** Only while it is connected: what its clock did since is not known. */
function skewText({ link, status }: Agent): string | null {
  const skewMs = status?.process?.clockSkewMs ?? null;
  if (link === null || skewMs === null) return null;
  const delay = status?.process?.loopDelayMs ?? null;
  const loop = delay === null ? "" : `; its event loop is late by ${delay.p99} ms (p99), ${delay.max} ms at most`;
  return `${Math.abs(skewMs)} ms ${skewMs < 0 ? "behind" : "ahead of"} the control plane's${loop}`;
}
