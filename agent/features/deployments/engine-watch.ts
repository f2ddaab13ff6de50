// One piece of work at its engine, as far as the engine answers: one that does not says nothing about the work, and is
// asked again for as long as the agent lives.
import { toConnectorError, wait } from "@sallyport/protocol";
import type { Engine, WorkName, WorkStatus } from "../../engines/engine.ts";
import type { Deps } from "./deps.ts";
import type { Problem } from "./exit.ts";
import { insist, orAborted, Pause } from "./insist.ts";

export type Ended = Extract<WorkStatus, { state: "exited" }> | { state: "absent" };

/** The rest of a log comes from the engine within this. */
const LAST_WORDS_MS = 10_000;

export interface EngineWatchOptions {
  deps: Deps;
  engine: string;
  work: WorkName;
  /** `r3.0` */
  replica: string;
  life: AbortSignal;
  /** `problem` came or went. */
  changed: () => void;
}

export class EngineWatch {
  readonly #o: EngineWatchOptions;
  #problem: Problem | null = null;

  constructor(options: EngineWatchOptions) {
    this.#o = options;
  }

  /** The engine does not answer; null when it did. */
  get problem(): Problem | null {
    return this.#problem;
  }
  get engine(): Engine {
    return this.#o.deps.engines.get(this.#o.engine);
  }

  /** Asks once, and notes whether there was an answer. */
  async ask<T>(question: (engine: Engine) => Promise<T>): Promise<T> {
    try {
      // An engine that neither answers nor refuses must not hold up the agent's own end.
      const answer = await orAborted(this.#o.life, question(this.engine));
      if (this.#problem !== null) {
        this.#problem = null;
        this.#o.changed();
      }
      return answer;
    } catch (caught) {
      this.#o.life.throwIfAborted();
      if (this.#problem === null) {
        const { message, fix } = toConnectorError(caught);
        this.#problem = {
          code: "ENGINE_UNREACHABLE",
          message,
          fix: fix ?? "What runs in it goes on. Look whether the engine itself runs.",
          details: { replica: this.#o.replica, engine: this.#o.engine },
          soft: false,
        };
        this.#o.changed();
      }
      throw caught;
    }
  }

  /** Asks until there is an answer. */
  async insist<T>(question: (engine: Engine) => Promise<T>, signal: AbortSignal = this.#o.life): Promise<T> {
    return insist(this.#o.deps, `engine of ${this.#o.work}`, signal, () => this.ask(question));
  }

  /** Resolves when the engine says that it has ended, or knows nothing of it. */
  async end(): Promise<Ended> {
    const { deps, work, life } = this.#o;
    const over = new AbortController();
    try {
      for (;;) {
        const status = await this.insist((engine) => engine.status(work));
        if (status.state !== "running") return status;
        const pause = new Pause();
        let waiting = true;
        const told = (): void => {
          waiting = false;
          pause.poke();
        };
        this.engine.ended(work, AbortSignal.any([life, over.signal])).then(told, told);
        while (waiting) {
          // Also when it says nothing: somebody may have removed it.
          await pause.of(deps, deps.timings.lookMs, life);
          const now = await this.ask((engine) => engine.status(work)).catch(() => null);
          if (now !== null && now.state !== "running") return now;
        }
        await wait(deps.clock, deps.timings.retryMs, life);
      }
    } finally {
      over.abort();
    }
  }

  /**
   * What it wrote is in its files when the engine's `ended` resolves; an engine that fails now does not hold up the rest.
   * `attached`: the engine feeds the files again.
   */
  async allWritten(attached: Promise<void>): Promise<void> {
    const { deps, work, life } = this.#o;
    const over = new AbortController();
    const stop = AbortSignal.any([life, over.signal]);
    const late = wait(deps.clock, LAST_WORDS_MS, stop).catch(() => undefined);
    const written = attached.then(() => this.engine.ended(work, stop));
    await Promise.race([written.catch(() => undefined), late]);
    over.abort();
    life.throwIfAborted();
  }
}
