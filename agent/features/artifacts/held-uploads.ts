// Uploads that outlive the stream that brings them. The store goes on waiting for bytes in this process while the link is
// away; the next stream of the same upload continues at the byte that the last one reached. What a store has taken is
// thereby never sent twice, and one upload is one write of the store: its conditions and its effect stay as they are.
import { ConnectorError, toConnectorError, type Clock, type Digest, type Timer } from "@sallyport/protocol";
import type { UploadIntake } from "../../commands/command.ts";

type Written = { version: string; sizeBytes: number; digest: Digest };

/** How long an upload waits for its next stream, and its end for somebody who has not heard of it. */
const KEEP_MS = 90_000;
/** Uploads that wait for a stream: each may hold a few parts in memory. The oldest goes when there are more. */
const MOST_WAITING = 16;

interface Held {
  readonly of: string;
  readonly feed: Feed;
  readonly done: Promise<Written>;
  readonly stop: AbortController;
  settled: boolean;
  /** Of streams: only the newest feeds. */
  turn: number;
  timer: Timer | null;
}

export interface UploadTaking {
  /** The same on each stream of one upload. */
  id: string;
  /** What it is an upload of: another under the same id is refused. */
  of: string;
  begin: (bytes: AsyncIterable<Buffer>, until: AbortSignal) => Promise<Written>;
  /** Of this stream, from where `intake` was told. */
  bytes: AsyncIterable<Buffer>;
  /** Of this stream: LINK_LOST lets the upload wait for the next, anything else ends it. */
  signal: AbortSignal;
  intake: UploadIntake;
}

export class HeldUploads {
  readonly #clock: Clock;
  /** Oldest first by when they were last left. */
  readonly #held = new Map<string, Held>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  async take(taking: UploadTaking): Promise<Written> {
    const { id, bytes, signal, intake } = taking;
    const held = this.#held.get(id) ?? this.#begin(taking);
    if (held.of !== taking.of)
      throw new ConnectorError(
        "CONFLICT",
        "An upload of that name is under way to another place or with other terms.",
        {
          fix: "Send it under a name of its own.",
        },
      );
    held.timer?.cancel();
    held.timer = null;
    const turn = ++held.turn;
    intake.from(held.feed.bytes);
    const feeding = (async () => {
      for await (const chunk of bytes) {
        await held.feed.push(chunk, () => held.turn === turn);
        intake.taken(held.feed.bytes);
      }
      if (held.turn === turn) held.feed.end();
    })();
    try {
      // Its end, or the failure of this stream. A store that fails says so before the bytes have ended.
      const written = await Promise.race([held.done, feeding.then(() => held.done)]);
      this.#keep(id, held);
      return written;
    } catch (caught) {
      const reason = toConnectorError(signal.aborted ? signal.reason : caught);
      if (held.turn !== turn) throw reason;
      if (reason.code === "LINK_LOST") this.#keep(id, held);
      else this.#drop(id, held, reason);
      throw caught;
    } finally {
      feeding.catch(() => undefined);
    }
  }

  /** Ends those that wait, and leaves nothing of them in the stores. */
  close(): void {
    const reason = new ConnectorError("AGENT_DRAINING", "The agent is stopping.");
    for (const [id, held] of this.#held) this.#drop(id, held, reason);
  }

  #begin({ id, of, begin }: UploadTaking): Held {
    const feed = new Feed();
    const stop = new AbortController();
    const done = begin(feed, stop.signal);
    const held: Held = { of, feed, done, stop, settled: false, turn: 0, timer: null };
    const settle = () => {
      held.settled = true;
      feed.close();
    };
    done.then(settle, settle);
    this.#held.set(id, held);
    return held;
  }

  #keep(id: string, held: Held): void {
    // Its place in the order is that of the newest.
    this.#held.delete(id);
    this.#held.set(id, held);
    held.timer?.cancel();
    const late = new ConnectorError("TIMED_OUT", "The upload did not go on in time.", { fix: "Send it again." });
    held.timer = this.#clock.after(KEEP_MS, () => this.#drop(id, held, late));
    const waiting = [...this.#held].filter(([, one]) => one.timer !== null && !one.settled);
    for (const [oldest, one] of waiting.slice(0, Math.max(0, waiting.length - MOST_WAITING)))
      this.#drop(oldest, one, late);
  }

  #drop(id: string, held: Held, reason: ConnectorError): void {
    held.timer?.cancel();
    held.timer = null;
    if (this.#held.get(id) === held) this.#held.delete(id);
    held.stop.abort(reason);
    held.feed.fail(reason);
  }
}

/** One chunk at a time from whoever feeds to the store that reads. */
class Feed implements AsyncIterable<Buffer> {
  /** Taken in all. */
  bytes = 0;
  #chunk: Buffer | null = null;
  #ended = false;
  #closed = false;
  #failure: ConnectorError | null = null;
  readonly #waiting = new Set<() => void>();

  /** Resolves when the chunk was taken. Rejects when the feeder is no longer the one, or the reader is gone. */
  async push(chunk: Buffer, mine: () => boolean): Promise<void> {
    while (this.#chunk !== null && this.#failure === null && !this.#closed && mine()) await this.#change();
    if (this.#failure !== null) throw this.#failure;
    if (!mine()) throw new ConnectorError("SESSION_SUPERSEDED", "The upload goes on over a newer stream.");
    // The store has ended before the bytes: its word is the answer.
    if (this.#closed || this.#ended) return;
    this.#chunk = chunk;
    this.bytes += chunk.length;
    this.#wake();
  }

  end(): void {
    this.#ended = true;
    this.#wake();
  }
  /** The reader is gone. */
  close(): void {
    this.#closed = true;
    this.#chunk = null;
    this.#wake();
  }
  fail(reason: ConnectorError): void {
    this.#failure ??= reason;
    this.#wake();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    for (;;) {
      if (this.#failure !== null) throw this.#failure;
      const chunk = this.#chunk;
      if (chunk !== null) {
        this.#chunk = null;
        this.#wake();
        yield chunk;
      } else if (this.#ended) return;
      else await this.#change();
    }
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.add(resolve));
  }
  #wake(): void {
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }
}
