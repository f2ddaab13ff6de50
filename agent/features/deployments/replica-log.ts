// The log of one start of a replica, from its opening (or going on after a restart) to its last words.
import { toConnectorError, wait, type DeploymentId } from "@sallyport/protocol";
import { z } from "zod";
import type { AttemptLog, LogAddress } from "../../logs/index.ts";
import type { Deps } from "./deps.ts";

/** What a runtime that gives up says in the last line of its stderr. */
const lastWordsSchema = z.object({ code: z.string().max(64), message: z.string().max(4096) });
export type LastWords = z.infer<typeof lastWordsSchema>;
const LAST_RECORDS = 50;
/** Logs of earlier starts that are kept for each replica. */
const STARTS_KEPT = 10;
const SECRET_RETRY_MS = 2000;
/** A replica that ended is not started again before its log is closed: so a provider that is away is not waited for long. */
const SECRET_TRIES_AFTER_END = 3;

export class ReplicaLog {
  readonly #deps: Deps;
  readonly #address: LogAddress;
  readonly #log: AttemptLog;
  readonly #over = new AbortController();
  #reading: Promise<void> = Promise.resolve();

  private constructor(deps: Deps, address: LogAddress, log: AttemptLog) {
    this.#deps = deps;
    this.#address = address;
    this.#log = log;
  }

  static async open(deps: Deps, deployment: DeploymentId, replica: string, start: number): Promise<ReplicaLog> {
    const address = { run: deployment, step: replica, attempt: start };
    return new ReplicaLog(deps, address, await deps.logs.open(address));
  }

  get files(): { stdout: string; stderr: string } {
    return { stdout: this.#log.stdout, stderr: this.#log.stderr };
  }
  get lastSeq(): number {
    return this.#log.lastSeq;
  }

  /** A log that cannot be written is no reason not to serve. */
  async say(text: string): Promise<void> {
    await this.#log
      .system(text)
      .catch((error: unknown) => this.#deps.log.warn({ err: error }, "a replica's log cannot be written"));
  }

  /** Begins to read, without waiting. All that it must not show is made known first: `before`, then these secrets. */
  read(secrets: readonly string[], signal: AbortSignal, before: (stop: AbortSignal) => Promise<unknown>): void {
    const stop = AbortSignal.any([signal, this.#over.signal]);
    this.#reading = (async () => {
      await before(stop);
      for (let triesAfterEnd = 0; ;) {
        try {
          for (const name of secrets) this.#deps.redactor.add((await this.#deps.secrets.named(name, signal)).reveal());
          break;
        } catch (caught) {
          signal.throwIfAborted();
          const error = toConnectorError(caught);
          if (this.#over.signal.aborted) triesAfterEnd++;
          if (error.retry === "never" || triesAfterEnd >= SECRET_TRIES_AFTER_END)
            return this.#log.withhold(
              `The rest of this log is withheld: a secret of the replica cannot be resolved again (${error.code}), so it could not be removed.`,
            );
          // Cut short once, when it ends.
          const until = this.#over.signal.aborted ? signal : stop;
          await wait(this.#deps.clock, SECRET_RETRY_MS, until).catch(() => signal.throwIfAborted());
        }
      }
      await this.#log.follow();
    })();
    this.#reading.catch((error: unknown) => {
      if (!signal.aborted) this.#deps.log.error({ err: error, ...this.#address }, "a replica's log cannot be read");
    });
  }

  /** It has ended: all that it wrote is read and sealed. */
  async finish(): Promise<{ logSeq: number; lastWords: LastWords | null }> {
    this.#over.abort();
    await this.#reading.catch(() => undefined);
    const logSeq = await this.#log.finish().catch((error: unknown) => {
      this.#deps.log.error({ err: error, ...this.#address }, "the end of a replica's log could not be written");
      return this.#log.lastSeq;
    });
    const old = this.#address.attempt - STARTS_KEPT;
    if (old > 0) await this.#deps.logs.remove({ ...this.#address, attempt: old }).catch(() => undefined);
    return { logSeq, lastWords: await this.#lastWords().catch(() => null) };
  }

  async close(): Promise<void> {
    await this.#log.close();
    await this.#reading.catch(() => undefined);
  }

  async #lastWords(): Promise<LastWords | null> {
    let line = "";
    for await (const record of this.#deps.logs.read({
      ...this.#address,
      after: 0,
      limit: LAST_RECORDS,
      tail: LAST_RECORDS,
      follow: false,
    }))
      if (!("gap" in record) && record.stream === "stderr" && record.body.data.trim() !== "") line = record.body.data;
    if (!line.trimStart().startsWith("{")) return null;
    const parsed = lastWordsSchema.safeParse(JSON.parse(line));
    return parsed.success ? parsed.data : null;
  }
}
