// What engines that several agents ask keep of runs that are over here. The name of each attempt's container is what stops
// another agent, that has the run or thinks so, from beginning the step again: it goes when nobody can think so any more.
import { wait, type CommandId } from "@sallyport/protocol";
import type { PipelinesDeps } from "./deps.ts";
import { FENCES, type FenceRecord } from "./run-record.ts";

/** Nobody who was silent for so long goes on where it stood. */
const KEEP_MS = 7 * 24 * 3600_000;
const PAUSE_MS = 1000;

type FencesDeps = Pick<PipelinesDeps, "journal" | "engines" | "clock" | "log">;

export class Fences {
  readonly #deps: FencesDeps;
  readonly #runs: (command: string) => boolean;
  #collecting: Promise<void> | null = null;
  #again = false;

  /** `runs`: it is under way here. */
  constructor(deps: FencesDeps, runs: (command: string) => boolean) {
    this.#deps = deps;
    this.#runs = runs;
  }

  /** Commands whose containers are not to be touched by anybody else's cleaning. */
  async held(): Promise<string[]> {
    return (await this.#deps.journal.entries(FENCES)).map(({ key }) => key);
  }

  async hasBegun(command: CommandId): Promise<boolean> {
    for (const name of this.#deps.engines.names) {
      const works = await this.#deps.engines.get(name).shared?.ofCommand(command);
      if ((works?.length ?? 0) > 0) return true;
    }
    return false;
  }

  /** Another agent has it: nothing of it is this one's to remove for long. */
  async released(command: CommandId): Promise<void> {
    const { journal, clock } = this.#deps;
    const before = (await journal.get(FENCES, command)) as FenceRecord | null | undefined;
    const record: FenceRecord = { format: 1, engine: before?.engine ?? "", endedAt: clock.now(), taken: true };
    await journal.put(FENCES, command, record);
  }

  async keep(commands: readonly CommandId[]): Promise<void> {
    for (const command of commands) await this.#mark(command, true);
  }

  async drop(commands: readonly CommandId[]): Promise<void> {
    for (const command of commands) await this.#mark(command, false);
    this.wake();
  }

  async #mark(command: CommandId, taken: boolean): Promise<void> {
    const record = (await this.#deps.journal.get(FENCES, command)) as FenceRecord | null | undefined;
    if (record == null || record.taken === taken) return;
    await this.#deps.journal.put(FENCES, command, { ...record, taken });
  }

  /** Soon, and once for many. */
  wake(): void {
    if (this.#collecting !== null) {
      this.#again = true;
      return;
    }
    this.#collecting = (async () => {
      do {
        this.#again = false;
        await this.collect();
        // Acknowledgements come in swarms.
        await wait(this.#deps.clock, PAUSE_MS);
      } while (this.#again);
    })()
      .catch((error: unknown) =>
        this.#deps.log.warn({ err: error }, "what an engine keeps of ended runs could not be removed"),
      )
      .finally(() => (this.#collecting = null));
  }

  async collect(): Promise<void> {
    const { journal, clock, engines } = this.#deps;
    if (!engines.names.some((name) => engines.get(name).shared !== undefined)) return;
    for (const { key, value } of await journal.entries(FENCES)) {
      const command = key as CommandId;
      const record = value as FenceRecord;
      if (this.#runs(command)) continue;
      const state = (await journal.command(command))?.state;
      if (state === "accepted" || state === "running") {
        // Let go of once, and taken up again since: it is fenced anew when it ends.
        if (record.taken) await journal.commit({ remove: [{ namespace: FENCES, key }] });
        continue;
      }
      if (record.taken ? clock.now() < record.endedAt + KEEP_MS : await journal.unacknowledged(command)) continue;
      if (await this.#forget(command, record)) await journal.commit({ remove: [{ namespace: FENCES, key }] });
    }
  }

  /** False when something of it is there still. */
  async #forget(command: CommandId, record: FenceRecord): Promise<boolean> {
    const { engines, log } = this.#deps;
    let all = true;
    for (const name of record.engine === "" ? engines.names : [record.engine]) {
      if (!engines.names.includes(name)) continue;
      const engine = engines.get(name);
      for (const work of (await engine.shared?.ofCommand(command)) ?? []) {
        // What runs of it is not this agent's to stop: it let go of it, or it has ended here without that.
        if ((await engine.status(work)).state === "running") all = false;
        else
          await engine.forget(work).catch((error: unknown) => {
            all = false;
            log.warn({ err: error, work }, "a step's container could not be removed");
          });
      }
    }
    return all;
  }
}
