// `sallyport-agent pause` and `resume`: the intake of the running agent.
import { systemClock } from "@sallyport/protocol";
import { InvalidArgumentError, type Command } from "commander";
import { askAgent } from "../control/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

const UNIT_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `30m`, `2h`, `1d`, or a date and time. Answers in ms since the epoch. */
function parseUntil(text: string): number {
  const now = systemClock.now();
  const duration = /^(\d+)(s|m|h|d)$/.exec(text);
  const at =
    duration === null ? Date.parse(text) : now + Number(duration[1]) * UNIT_MS[duration[2] as keyof typeof UNIT_MS];
  if (!Number.isFinite(at) || at <= now)
    throw new InvalidArgumentError("A time to come is expected: 30m, 2h, 1d, or a date such as 2030-01-31T18:00Z.");
  return at;
}

export function pauseCommands(program: Command, local: LocalCommands): void {
  program
    .command("pause")
    .description("take no new commands; what runs goes on")
    .option(...local.configOption)
    .option("-r, --reason <text>", "shown to whoever waits", "maintenance")
    .option("-u, --until <time>", "resume by itself: 30m, 2h, 1d, or a date and time", parseUntil)
    .action((options: { config?: string; reason: string; until?: number }) =>
      local.perform(options.config, async (stateDir) => {
        await askAgent(stateDir, { op: "pause", reason: options.reason, until: options.until ?? null });
        local.write(
          options.until === undefined
            ? "Paused until: sallyport-agent resume\n"
            : `Paused until ${new Date(options.until).toISOString()}\n`,
        );
        return EXIT.ok;
      }),
    );
  program
    .command("resume")
    .description("take new commands again")
    .option(...local.configOption)
    .action((options: { config?: string }) =>
      local.perform(options.config, async (stateDir) => {
        const { paused } = (await askAgent(stateDir, { op: "resume" })) as { paused: boolean };
        local.write(paused ? "Resumed.\n" : "It was not paused.\n");
        return EXIT.ok;
      }),
    );
}
