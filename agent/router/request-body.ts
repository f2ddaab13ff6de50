// A request's body on its way to a replica: kept whole while it is small, so that it can be sent again; streamed from the
// client when it is not. Memory is bounded per request and over all of them.
import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { ConnectorError } from "@sallyport/protocol";

export interface BodyLimits {
  /** A longer body is refused: TOO_LARGE. */
  maxBytes: number;
  /** Kept whole up to here. */
  repeatableBytes: number;
}

/** What all requests together may keep whole. */
export class BufferBudget {
  #left: number;
  constructor(bytes: number) {
    this.#left = bytes;
  }
  take(bytes: number): boolean {
    if (bytes > this.#left) return false;
    this.#left -= bytes;
    return true;
  }
  give(bytes: number): void {
    this.#left += bytes;
  }
}

/** `null`: none. A buffer can be sent any number of times, a stream once. */
export type RequestBody = Buffer | StreamedBody | null;

export const bodyTooLarge = (maxBytes: number): ConnectorError =>
  new ConnectorError("TOO_LARGE", `The request's body is over ${maxBytes} bytes.`, { fix: "Send smaller batches." });

/** Begins with what was read already; the rest comes from the client as fast as the replica takes it. */
export class StreamedBody {
  /** As the client declared it; null: chunked. */
  readonly length: number | null;
  readonly #prefix: Buffer[];
  readonly #from: IncomingMessage;
  readonly #maxBytes: number;

  constructor(from: IncomingMessage, prefix: Buffer[], length: number | null, maxBytes: number) {
    this.#from = from;
    this.#prefix = prefix;
    this.length = length;
    this.#maxBytes = maxBytes;
  }

  /** A reader. Another may be taken as long as no byte was read from the one before. */
  open(): Readable {
    const from = this.#from;
    let bytes = 0;
    let reading = false;
    const onData = (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes > this.#maxBytes) return void reader.destroy(bodyTooLarge(this.#maxBytes));
      if (!reader.push(chunk)) from.pause();
    };
    const onEnd = () => void reader.push(null);
    const onClose = () => {
      if (!from.complete) reader.destroy(new ConnectorError("CANCELLED", "The client went away."));
    };
    const reader = new Readable({
      highWaterMark: 64 * 1024,
      read: () => {
        if (!reading) {
          reading = true;
          for (const chunk of this.#prefix.splice(0)) {
            bytes += chunk.length;
            reader.push(chunk);
          }
          from.on("data", onData).once("end", onEnd).once("close", onClose);
          if (from.readableEnded) onEnd();
          else if (from.destroyed) return onClose();
        }
        from.resume();
      },
      destroy: (error, done) => {
        from.off("data", onData).off("end", onEnd).off("close", onClose);
        done(error);
      },
    });
    return reader;
  }
}

/** Reads until the end or the bound, then says what there is. `release` gives the budget back. */
export function readBody(
  from: IncomingMessage,
  declared: number | null,
  limits: BodyLimits,
  budget: BufferBudget,
  done: (body: RequestBody, keptBytes: number) => void,
  tooLarge: () => void,
): void {
  let chunks: Buffer[] = [];
  let bytes = 0;
  const keep = declared === null || declared <= limits.repeatableBytes;
  const finish = (body: RequestBody) => {
    from.off("data", onData).off("end", onEnd).off("close", onClose);
    done(body, bytes);
  };
  const stream = () => {
    from.pause();
    finish(new StreamedBody(from, chunks, declared, limits.maxBytes));
  };
  const onData = (chunk: Buffer) => {
    if (!budget.take(chunk.length)) {
      // Over all that may be kept: what this one chunk adds is bounded by the socket's own buffer.
      chunks.push(chunk);
      return stream();
    }
    bytes += chunk.length;
    if (bytes > limits.maxBytes) {
      onClose();
      return tooLarge();
    }
    chunks.push(chunk);
    // All that was declared is here: the end need not be waited for.
    if (bytes === declared) onEnd();
    else if (bytes > limits.repeatableBytes) stream();
  };
  const onEnd = () => {
    const whole = chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
    chunks = [];
    finish(whole);
  };
  const onClose = () => {
    from.off("data", onData).off("end", onEnd).off("close", onClose);
    budget.give(bytes);
  };
  if (!keep) return done(new StreamedBody(from, chunks, declared, limits.maxBytes), 0);
  from.on("data", onData).on("end", onEnd).on("close", onClose);
}
