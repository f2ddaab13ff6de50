// The outbox: sends what the journal holds of reports, in order, on each session, until the cloud has committed them.
// A lost session loses nothing: the next one begins again after the last acknowledged report.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  jsonBody,
  ndjsonLine,
  readJsonBody,
  readNdjson,
  reportAckSchema,
  toConnectorError,
  wait,
  type Clock,
  type CommandId,
  type LinkStream,
  type Report,
  type ReportAck,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { Journal } from "../journal/journal.ts";
import type { AgentSession } from "../link/link.ts";
import type { Redactor } from "../redaction/redactor.ts";

export interface ReportOutboxOptions {
  journal: Journal;
  redactor: Redactor;
  clock: Clock;
  log: Logger;
  random?: () => number;
  /** Lists that came with an acknowledgement, to be written down before it counts. Absent = they are passed over. */
  handed?: (lists: { released: CommandId[]; fenced: CommandId[]; settled: CommandId[] }) => Promise<void>;
  /** More was acknowledged. */
  acknowledged?: () => void;
}

const BATCH = 64;
/** Reports that may be under way without an acknowledgement. */
const WINDOW = 512;
const CHUNK_BYTES = 64 * 1024;
const RETRY_FIRST_MS = 250;
const RETRY_MOST_MS = 15_000;
/** Reports that were sent are not heard of for so long: they are sent again, on a new stream. */
const SILENCE_MS = 15_000;

/** Crash points for tests, and events for whoever observes. */
const boundary = {
  sent: channel("sallyport:agent:reports.sent"),
  acknowledged: channel("sallyport:agent:reports.acknowledged"),
};

export class ReportOutbox {
  readonly #options: ReportOutboxOptions;
  #acknowledged = 0;
  readonly #onAck = new Set<() => void>();
  /** Ends the service of the newest session. */
  #newest: AbortController | null = null;

  constructor(options: ReportOutboxOptions) {
    this.#options = options;
  }

  /** Serves one session until it is over, or another is served: reports leave by the newest alone. Never rejects. */
  async serve(session: AgentSession): Promise<void> {
    const { clock, log } = this.#options;
    const over = new AbortController();
    this.#newest?.abort(new ConnectorError("SESSION_SUPERSEDED", "The reports leave by a newer session."));
    this.#newest = over;
    void session.closed.then((reason) => over.abort(reason));
    for (let attempt = 0; !over.signal.aborted; attempt++) {
      const before = this.#acknowledged;
      try {
        await this.#serveStream(session, over.signal);
      } catch (caught) {
        if (over.signal.aborted) return;
        const error = toConnectorError(caught);
        log.warn(
          { code: error.code, ...(error.code === "INTERNAL" ? { err: caught } : {}) },
          `the reports' stream broke, trying again: ${error.message}`,
        );
      }
      if (this.#acknowledged > before) attempt = 0;
      const window = Math.min(RETRY_FIRST_MS * 2 ** attempt, RETRY_MOST_MS);
      await wait(clock, window * (0.5 + 0.5 * (this.#options.random ?? Math.random)()), over.signal).catch(
        () => undefined,
      );
    }
  }

  /** Resolves true when everything journaled is acknowledged, false after `deadlineMs`. */
  async flush(deadlineMs: number): Promise<boolean> {
    const deadline = new AbortController();
    const timer = this.#options.clock.after(deadlineMs, () => deadline.abort(), { keepAlive: true });
    try {
      for (;;) {
        const acked = new Promise<void>((resolve) => {
          const wake = () => {
            this.#onAck.delete(wake);
            resolve();
          };
          this.#onAck.add(wake);
          deadline.signal.addEventListener("abort", wake, { once: true });
        });
        if ((await this.#options.journal.reportsAfter(this.#acknowledged, 1)).length === 0) return true;
        await acked;
        if (deadline.signal.aborted) return false;
      }
    } finally {
      timer.cancel();
      deadline.abort();
    }
  }

  async #serveStream(session: AgentSession, sessionOver: AbortSignal): Promise<void> {
    const { journal } = this.#options;
    const held = await journal.reportsAfter(this.#acknowledged, 1);
    const from = held[0]?.sequence ?? journal.lastSequence + 1;
    const head = { type: "reports", journal: journal.id, from };
    const stream = session.open(head, { lane: "interactive", background: true });
    stream.answer.catch(() => undefined);
    const stop = new AbortController();
    const signal = AbortSignal.any([sessionOver, stream.signal, stop.signal]);
    const onOver = () => stream.reset(toConnectorError(sessionOver.reason));
    sessionOver.addEventListener("abort", onOver, { once: true });
    const sent = { through: this.#acknowledged };
    const failed = (caught: unknown): void => {
      stream.reset(toConnectorError(caught));
      if (!stop.signal.aborted) stop.abort(caught);
    };
    const reading = this.#read(stream, sent).catch(failed);
    const writing = this.#write(stream, sent, signal).catch(failed);
    const silence = this.#onSilence(sent, () =>
      failed(new ConnectorError("TIMED_OUT", `Reports up to ${sent.through} were not acknowledged in time.`)),
    );
    await Promise.all([reading, writing]);
    silence.cancel();
    sessionOver.removeEventListener("abort", onOver);
    if (stop.signal.aborted) throw stop.signal.reason;
    if (stream.signal.aborted) throw stream.signal.reason;
  }

  /** Calls `silent`, once, when something is under way and no acknowledgement has come for too long. */
  #onSilence(sent: { through: number }, silent: () => void): { cancel(): void } {
    const { clock } = this.#options;
    let before = this.#acknowledged;
    let heardMs = clock.monotonic();
    const look = (): void => {
      const now = clock.monotonic();
      if (sent.through <= this.#acknowledged || this.#acknowledged > before) heardMs = now;
      before = this.#acknowledged;
      if (now - heardMs >= SILENCE_MS) return silent();
      timer = clock.after(SILENCE_MS / 5, look);
    };
    let timer = clock.after(SILENCE_MS / 5, look);
    return { cancel: () => timer.cancel() };
  }

  async #read(stream: LinkStream, sent: { through: number }): Promise<never> {
    for await (const line of readNdjson(stream.bytes)) {
      const ack = reportAckSchema.safeParse(line);
      const committedThrough = ack.success ? ack.data.committedThrough : Infinity;
      // What was not sent cannot have been committed: obeying would drop reports that nobody has.
      if (committedThrough > sent.through) {
        const what = ack.success
          ? `Report ${committedThrough} was acknowledged, but ${sent.through} is the last that was sent.`
          : "An acknowledgement of reports is not of the expected shape.";
        const error = new ConnectorError("PROTOCOL_ERROR", what);
        stream.reset(error);
        throw error;
      }
      if (ack.success) await this.#handed(ack.data);
      if (committedThrough <= this.#acknowledged) continue;
      await this.#options.journal.acknowledge(committedThrough);
      this.#acknowledged = committedThrough;
      boundary.acknowledged.publish({ through: committedThrough });
      for (const wake of [...this.#onAck]) wake();
      this.#options.acknowledged?.();
    }
    throw new ConnectorError("LINK_LOST", "The other end closed the reports' stream.");
  }

  async #handed({ released = [], fenced = [], settled = [] }: ReportAck): Promise<void> {
    if (released.length + fenced.length + settled.length > 0)
      await this.#options.handed?.({ released, fenced, settled });
  }

  async #write(stream: LinkStream, sent: { through: number }, signal: AbortSignal): Promise<void> {
    const { journal } = this.#options;
    while (!signal.aborted) {
      if (sent.through - this.#acknowledged >= WINDOW) {
        await this.#nextAck(signal);
        continue;
      }
      const batch = await journal.reportsAfter(sent.through, BATCH);
      if (batch.length === 0) await journal.changed(sent.through, signal);
      // At the first sight of the journal: what it no longer holds was acknowledged before.
      if (sent.through === 0 && batch.length > 0) this.#acknowledged = sent.through = batch[0]!.sequence - 1;
      let lines: Buffer[] = [];
      let bytes = 0;
      for (const [n, report] of batch.entries()) {
        const line = ndjsonLine(this.#redacted(report));
        lines.push(line);
        bytes += line.length;
        if (bytes < CHUNK_BYTES && n < batch.length - 1) continue;
        if (signal.aborted) return;
        // Before the bytes: the acknowledgement may be quicker than the promise of this write.
        sent.through = report.sequence;
        await stream.write(Buffer.concat(lines));
        boundary.sent.publish({ through: sent.through });
        lines = [];
        bytes = 0;
      }
    }
  }

  #nextAck(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        this.#onAck.delete(wake);
        signal.removeEventListener("abort", wake);
        resolve();
      };
      if (signal.aborted) return resolve();
      this.#onAck.add(wake);
      signal.addEventListener("abort", wake, { once: true });
    });
  }

  /** Again, though it was redacted when it was made: a secret may have become known since. */
  #redacted(report: Report): Report {
    return { ...report, body: jsonBody(this.#options.redactor.json(readJsonBody(report.body))) };
  }
}
