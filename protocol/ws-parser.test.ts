// Whatever way a socket cuts the bytes, the same messages come out; whatever bytes come, nothing but a violation is thrown.
import fc from "fast-check";
import t from "tap";
import { maskInto, unmask } from "./masks.ts";
import { OPCODE, WsParser, WsViolation } from "./ws-parser.ts";

const MOST_BYTES = 300_000;

function frame(opcode: number, fin: boolean, payload: Buffer, mask: Buffer | null): Buffer {
  const length =
    payload.length < 126
      ? Buffer.from([payload.length])
      : payload.length < 65_536
        ? Buffer.from([126, payload.length >> 8, payload.length & 255])
        : Buffer.from([127, 0, 0, 0, 0, 0, payload.length >> 16, (payload.length >> 8) & 255, payload.length & 255]);
  length[0]! |= mask === null ? 0 : 0x80;
  const body = Buffer.alloc(payload.length);
  // Byte by byte: what the fast ways are held against.
  for (let i = 0; i < body.length; i++) body[i] = payload[i]! ^ (mask === null ? 0 : mask[i & 3]!);
  return Buffer.concat([Buffer.from([(fin ? 0x80 : 0) | opcode]), length, mask ?? Buffer.alloc(0), body]);
}

function parse(masked: boolean, chunks: Iterable<Buffer>): { messages: Buffer[]; controls: Buffer[] } {
  const messages: Buffer[] = [];
  const controls: Buffer[] = [];
  let parts: Buffer[] = [];
  const parser = new WsParser(masked, MOST_BYTES, unmask, {
    part(bytes, more) {
      parts.push(Buffer.from(bytes));
      if (more) return;
      messages.push(Buffer.concat(parts));
      parts = [];
    },
    control: (_opcode, payload) => controls.push(payload),
  });
  for (const chunk of chunks) parser.push(chunk);
  return { messages, controls };
}

function* cut(bytes: Buffer, sizes: readonly number[]): Generator<Buffer> {
  for (let at = 0, n = 0; at < bytes.length; n++) {
    const size = sizes[n % sizes.length]!;
    yield Buffer.from(bytes.subarray(at, at + size));
    at += size;
  }
}

const payload = fc.oneof(
  fc.uint8Array({ maxLength: 200 }),
  fc.uint8Array({ minLength: 60_000, maxLength: 70_000 }),
  fc.constant(new Uint8Array(0)),
);

t.test("messages come out as they went in", async (t) => {
  fc.assert(
    fc.property(
      fc.boolean(),
      fc.array(fc.record({ payload, fragments: fc.integer({ min: 1, max: 4 }), ping: fc.boolean() }), { maxLength: 4 }),
      fc.array(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1000, max: 70_000 })), {
        minLength: 1,
        maxLength: 5,
      }),
      fc.uint8Array({ minLength: 4, maxLength: 4 }),
      (masked, sent, sizes, key) => {
        const mask = masked ? Buffer.from(key) : null;
        const wire: Buffer[] = [];
        let pings = 0;
        for (const message of sent) {
          const whole = Buffer.from(message.payload);
          const each = Math.ceil(whole.length / message.fragments) || 1;
          for (let n = 0; n < message.fragments; n++) {
            const last = n === message.fragments - 1;
            wire.push(
              frame(
                n === 0 ? OPCODE.binary : OPCODE.continuation,
                last,
                whole.subarray(n * each, last ? undefined : (n + 1) * each),
                mask,
              ),
            );
            if (!message.ping) continue;
            pings++;
            wire.push(frame(OPCODE.ping, true, Buffer.from("beat"), mask));
          }
        }
        const { messages, controls } = parse(masked, cut(Buffer.concat(wire), sizes));
        return (
          messages.length === sent.length &&
          messages.every((message, i) => message.equals(sent[i]!.payload)) &&
          controls.length === pings &&
          controls.every((control) => control.toString() === "beat")
        );
      },
    ),
    { numRuns: 150 },
  );
  t.pass();
});

t.test("any bytes: messages or a violation", async (t) => {
  fc.assert(
    fc.property(fc.boolean(), fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 20 }), (masked, chunks) => {
      try {
        parse(
          masked,
          chunks.map((chunk) => Buffer.from(chunk)),
        );
      } catch (error) {
        return error instanceof WsViolation;
      }
      return true;
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

t.test("what nobody may send", async (t) => {
  const mask = Buffer.from([1, 2, 3, 4]);
  const one = Buffer.from("x");
  const refused: [string, Buffer[]][] = [
    ["no mask", [frame(OPCODE.binary, true, one, null)]],
    ["text", [frame(OPCODE.text, true, one, mask)]],
    ["reserved bits", [Buffer.from([0xc2, 0x80, 0, 0, 0, 0])]],
    ["an unknown opcode", [Buffer.from([0x83, 0x80, 0, 0, 0, 0])]],
    ["a fragment of nothing", [frame(OPCODE.continuation, true, one, mask)]],
    ["a message within a message", [frame(OPCODE.binary, false, one, mask), frame(OPCODE.binary, true, one, mask)]],
    ["a long ping", [frame(OPCODE.ping, true, Buffer.alloc(126), mask)]],
    ["a fragmented ping", [frame(OPCODE.ping, false, one, mask)]],
    ["a huge length", [Buffer.from([0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4])]],
    [
      "many fragments",
      [
        frame(OPCODE.binary, false, one, mask),
        ...Array.from({ length: 1025 }, () => frame(OPCODE.continuation, false, Buffer.alloc(0), mask)),
      ],
    ],
    [
      "fragments beyond the most",
      Array.from({ length: 31 }, (_, n) =>
        frame(n === 0 ? OPCODE.binary : OPCODE.continuation, false, Buffer.alloc(10_000), mask),
      ),
    ],
  ];
  for (const [what, chunks] of refused) t.throws(() => parse(true, chunks), WsViolation, what);
});

t.test("masking is its own inverse, at any offset and turn", async (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 1000 }),
      fc.integer({ min: 0, max: 7 }),
      fc.integer({ min: 0, max: 3 }),
      (bytes, offset, turn) => {
        const mask = Buffer.from([9, 8, 7, 6]);
        const masked = Buffer.alloc(offset + bytes.length);
        maskInto(bytes, mask, masked, offset);
        // In two goes, as a socket may cut it.
        const split = Math.min(bytes.length, turn + 129);
        unmask(masked.subarray(offset, offset + split), mask);
        unmask(masked.subarray(offset + split), mask, split & 3);
        return masked.subarray(offset).equals(bytes);
      },
    ),
  );
  t.pass();
});
