// The multiplexer against anything at all, at both ends: frames that are right, altered, cut, repeated or made up, in any
// order. It goes on or closes with a code; it never throws, and never holds more than it granted.
import fc from "fast-check";
import t from "tap";
import {
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  FLAG,
  FRAME,
  FrameReader,
  FrameWriter,
  MAX_MESSAGE_BYTES,
  Mux,
  type FrameType,
  type LinkStream,
  type Transport,
} from "@sallyport/protocol";
import { ManualClock } from "../support/clock.ts";

/** One end of a channel: what it is given, and what leaves. */
class OneEnd implements Transport {
  readonly remoteAddress = "fuzz";
  readonly bufferedBytes = 0;
  sent = 0;
  over = false;
  #receiver: ((message: Buffer) => void) | null = null;
  send(): void {
    this.sent++;
  }
  cork(): void {}
  uncork(): void {}
  onMessage(receiver: ((message: Buffer) => void) | null): void {
    this.#receiver = receiver;
  }
  onDrain(): void {}
  onClose(): void {}
  close(): void {
    this.over = true;
  }
  destroy(): void {
    this.over = true;
  }
  give(message: Buffer): void {
    this.#receiver?.(message);
  }
}

const types = Object.values(FRAME).filter((type) => type !== FRAME.data) as FrameType[];
/** Ids near each other, so that frames meet streams that are there, were there, or never were. */
const stream = fc.oneof(fc.nat(9), fc.constantFrom(0, 0xffffffff, 4000));
const json = fc.oneof(
  fc.record({ limit: fc.oneof(fc.nat(), fc.maxSafeInteger()) }),
  fc.record({ bytes: fc.nat(100_000), echo: fc.nat(), holdUs: fc.nat() }),
  fc.record({ bytes: fc.nat(5_000), crc32: fc.nat() }),
  fc.record({ n: fc.nat() }),
  fc.record({ code: fc.constantFrom("CANCELLED", "GOING_AWAY", "nonsense"), message: fc.string() }),
  fc.jsonValue(),
);
const writer = new FrameWriter(null);
const frame = fc.oneof(
  fc
    .tuple(fc.constantFrom(...types), fc.constantFrom(0, FLAG.fin, FLAG.bulk, FLAG.fin | FLAG.bulk), stream, json)
    .map(([type, flags, id, value]) => [writer.control(type, flags, id, JSON.stringify(value))]),
  fc.tuple(stream, fc.nat(), fc.constantFrom(0, 1, 300, 5_000, 70_000)).map(([id, at, length]) => {
    const bytes = Buffer.alloc(length, 7);
    const head = Buffer.from(writer.data(id, at, bytes, false));
    return writer.detaches(length) ? [head, bytes] : [head];
  }),
  fc.uint8Array({ maxLength: 40 }).map((bytes) => [Buffer.from(bytes)]),
);
const harm = fc.option(fc.record({ at: fc.nat(), bit: fc.nat(7), cut: fc.boolean(), twice: fc.boolean() }), {
  freq: 4,
});

for (const side of ["agent", "cloud"] as const) {
  t.test(`the ${side}'s end`, async (t) => {
    let codes = new Set<string>();
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(frame, harm), { maxLength: 40 }), fc.boolean(), async (frames, answers) => {
        const end = new OneEnd();
        const held: LinkStream[] = [];
        const mux = new Mux({
          id: "ses_fuzz",
          transport: end,
          clock: new ManualClock(),
          side,
          writer: new FrameWriter(null),
          reader: new FrameReader(null),
          windows: DEFAULT_WINDOWS,
          peerWindows: DEFAULT_WINDOWS,
          maxStreams: 4,
          peerMaxStreams: DEFAULT_MAX_STREAMS,
          checksums: true,
          onStream: (one) => {
            held.push(one);
            if (answers) one.respond({}, { end: true });
          },
        });
        const own = mux.open({}, { lane: "interactive" });
        own.answer.catch(() => undefined);
        own.write(Buffer.alloc(1_000)).catch(() => undefined);
        let given = 0;
        for (const [messages, spoil] of frames) {
          for (const original of messages) {
            let message = Buffer.from(original);
            if (spoil !== null && message.length > 0) {
              message[spoil.at % message.length]! ^= 1 << spoil.bit;
              if (spoil.cut) message = message.subarray(0, spoil.at % message.length);
            }
            for (let n = 0; n < (spoil?.twice === true ? 2 : 1); n++) {
              if (message.length > MAX_MESSAGE_BYTES) continue;
              end.give(Buffer.from(message));
              given++;
            }
          }
        }
        await Promise.resolve();
        // Answers are bounded by what came: nobody makes this end talk without talking.
        if (end.sent > 10 * given + 20) throw new Error(`${end.sent} messages in answer to ${given}`);
        if (held.length > given) throw new Error("more streams than frames");
        if (end.over) codes.add((await mux.closed).code);
      }),
      { numRuns: 1_000 },
    );
    for (const code of codes)
      t.ok(
        ["PROTOCOL_ERROR", "FRAME_TOO_LARGE", "CANCELLED", "GOING_AWAY", "INTERNAL", "HANDSHAKE_FAILED"].includes(code),
        `closed with ${code}`,
      );
    t.ok(codes.has("PROTOCOL_ERROR"));
    codes = new Set();
  });
}
