// One upload of an artifact, over as many links as it takes. What the agent has not taken yet is kept here, a few MiB at
// most; when a link breaks, the same upload is asked for again on the next live session, and goes on at the byte that the
// agent names. The sender of the bytes notices only a pause.
import { randomUUID } from "node:crypto";
import { ConnectorError, artifactWrite, toConnectorError, wait, type ReplicaId } from "@sallyport/protocol";
import type { z } from "zod";
import { RESUMABLE, RESUME_MS, RETRIED, type Dispatch, type PoolRef } from "../../dispatch/index.ts";
import type { Scope } from "../../store/store.ts";

export type UploadRequest = Omit<z.input<typeof artifactWrite.input>, "upload">;

const PAUSE_MS = { first: 50, most: 2_000 };
/** Sent and not yet said to be taken, at most. */
const HELD_BYTES = 8 * 1024 * 1024;
export async function sendArtifact(
  dispatch: Dispatch,
  scope: Scope,
  pool: PoolRef,
  request: UploadRequest,
  bytes: AsyncIterable<Uint8Array>,
  signal: AbortSignal,
): Promise<z.output<typeof artifactWrite.output>> {
  const { clock } = dispatch;
  const held = new HeldBack(bytes, request.ifMatch !== undefined || request.ifNoneMatch !== undefined);
  const input = { ...request, upload: randomUUID() };
  const resource = `artifact:${request.store}/${request.path}`;
  let replica: ReplicaId | null = null;
  let deadline = Infinity;
  let pauseMs = PAUSE_MS.first;
  for (let first = true; ; first = false) {
    const before = held.takenBytes;
    try {
      const relayed = await dispatch.relay(scope, pool, artifactWrite, input, {
        resource,
        signal,
        // Only who began it can go on with it.
        ...(replica === null ? {} : { replica }),
        resumable: {
          first: replica === null,
          from: (offset) => held.from(offset),
          taken: (through) => held.taken(through),
          carried: (by) => {
            if (replica !== null) dispatch.metrics.resumed("upload");
            replica = by;
          },
        },
      });
      return relayed.result;
    } catch (error) {
      const failure = toConnectorError(error);
      if (held.lost !== null) throw held.lost;
      if (signal.aborted || !(first ? RETRIED : RESUMABLE).has(failure.code)) throw failure;
      if (first || held.takenBytes > before) {
        deadline = clock.monotonic() + RESUME_MS;
        pauseMs = PAUSE_MS.first;
      }
      const leftMs = deadline - clock.monotonic();
      if (leftMs <= 0 || (await dispatch.sessions.waitForPool(scope.workspace, pool.id, leftMs, signal)) === null)
        throw failure;
      await wait(clock, pauseMs, signal);
      pauseMs = Math.min(pauseMs * 2, PAUSE_MS.most);
    }
  }
}

/** What came and may have to be sent again. */
class HeldBack {
  /** Why it cannot go on; null while it can. */
  lost: ConnectorError | null = null;
  readonly #source: AsyncIterator<Uint8Array>;
  readonly #conditional: boolean;
  #chunks: Uint8Array[] = [];
  /** Offsets of the first byte that is held and of the next that comes. */
  #start = 0;
  #end = 0;
  #over = false;
  /** All of it was sent once: the agent may have finished. */
  #endSent = false;
  #reading: Promise<void> | null = null;
  /** Only the newest reader reads. */
  #turn = 0;
  #wake: () => void = () => {};

  constructor(source: AsyncIterable<Uint8Array>, conditional: boolean) {
    this.#source = source[Symbol.asyncIterator]();
    this.#conditional = conditional;
  }

  get takenBytes(): number {
    return this.#start;
  }

  taken(through: number): void {
    while (this.#chunks.length > 0 && this.#start + this.#chunks[0]!.length <= through)
      this.#start += this.#chunks.shift()!.length;
    this.#wake();
  }

  async *from(offset: number): AsyncGenerator<Uint8Array> {
    const turn = ++this.#turn;
    this.#wake();
    if (offset > this.#end) throw new ConnectorError("PROTOCOL_ERROR", "The agent has more bytes than were sent.");
    if (offset < this.#start || (offset < this.#end && offset === 0 && this.#endSent && this.#conditional))
      throw this.#giveUp();
    let at = offset;
    for (;;) {
      const next = this.#after(at);
      if (next !== null) {
        at += next.length;
        // Whoever sends it may change it.
        yield Uint8Array.from(next);
      } else if (this.#over) {
        this.#endSent = true;
        return;
      } else if (this.#end - this.#start >= HELD_BYTES) {
        await new Promise<void>((resolve) => (this.#wake = resolve));
      } else await this.#read();
      if (turn !== this.#turn) throw new ConnectorError("CANCELLED", "The upload goes on over another stream.");
    }
  }

  #giveUp(): ConnectorError {
    this.lost = new ConnectorError(
      "LINK_LOST",
      this.#endSent
        ? "The agent was restarted when all bytes of the upload had been sent: whether it was done is not known."
        : `The agent was restarted and no longer has the first ${this.#start} bytes of the upload.`,
      {
        fix: this.#endSent ? "Look whether it is there, and send it again if not." : "Send it again.",
      },
    );
    // Not the link's failure, which would make the agent wait for more.
    return new ConnectorError("CANCELLED", this.lost.message);
  }

  #after(offset: number): Uint8Array | null {
    let end = this.#end;
    for (let i = this.#chunks.length - 1; i >= 0; i--) {
      const chunk = this.#chunks[i]!;
      const start = end - chunk.length;
      if (offset >= start) return offset < end ? chunk.subarray(offset - start) : null;
      end = start;
    }
    return null;
  }

  /** One more chunk, or the end. A reader that was left in the middle and its successor wait for the same. */
  #read(): Promise<void> {
    this.#reading ??= this.#source
      .next()
      .then((step) => {
        if (step.done === true) this.#over = true;
        else {
          this.#chunks.push(step.value);
          this.#end += step.value.length;
        }
      })
      .finally(() => (this.#reading = null));
    return this.#reading;
  }
}
