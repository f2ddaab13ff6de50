import { createHmac, randomBytes } from "node:crypto";
import fc from "fast-check";
import t from "tap";
import { FrameMac, FrameReader, FrameWriter, INLINE_BYTES, parseControl } from "./codec.ts";
import { ConnectorError } from "./errors.ts";
import {
  FLAG,
  FRAME,
  FRAME_NAMES,
  MAC_BYTES,
  MAX_CONTROL_BYTES,
  MAX_DATA_BYTES,
  ackSchema,
  type Frame,
  type FrameType,
} from "./frames.ts";

const key = randomBytes(32);
const pair = (maced: boolean) => ({
  writer: new FrameWriter(maced ? new FrameMac(key) : null),
  reader: new FrameReader(maced ? new FrameMac(key) : null),
});
const refusal = (fn: () => unknown): string | null => {
  try {
    fn();
    return null;
  } catch (error) {
    if (error instanceof ConnectorError) return error.code;
    throw error;
  }
};

const wish = fc.oneof(
  fc.record({
    kind: fc.constant("control" as const),
    type: fc.constantFrom(...(Object.values(FRAME).filter((type) => type !== FRAME.data) as FrameType[])),
    flags: fc.constantFrom(0, FLAG.fin, FLAG.fin | FLAG.bulk),
    stream: fc.integer({ min: 0, max: 0xffffffff }),
    value: fc.jsonValue(),
  }),
  fc.record({
    kind: fc.constant("data" as const),
    stream: fc.integer({ min: 0, max: 0xffffffff }),
    timestamp: fc.integer({ min: 0, max: 0xffffffff }),
    payload: fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.constantFrom(INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 70_000).map((n) => new Uint8Array(n).fill(n)),
    ),
    maced: fc.boolean(),
  }),
);

t.test("what is written is read, with and without MAC, in any order of frames", async () => {
  fc.assert(
    fc.property(fc.array(wish, { maxLength: 12 }), fc.boolean(), (wishes, maced) => {
      const { writer, reader } = pair(maced);
      for (const one of wishes) {
        let frame: Frame | null;
        if (one.kind === "control") {
          const json = JSON.stringify(one.value);
          if (Buffer.byteLength(json) > 8 * 1024) continue;
          frame = reader.read(writer.control(one.type, one.flags, one.stream, json));
          if (
            frame === null ||
            frame.type !== one.type ||
            frame.stream !== one.stream ||
            frame.payload.toString() !== json
          )
            return false;
          if ((frame.flags & ~FLAG.maced) !== one.flags) return false;
        } else {
          frame = reader.read(writer.data(one.stream, one.timestamp, one.payload, one.maced));
          if (writer.detaches(one.payload.length)) {
            if (frame !== null) return false;
            frame = reader.read(Buffer.from(one.payload));
          }
          if (
            frame === null ||
            frame.timestampUs !== one.timestamp ||
            frame.stream !== one.stream ||
            !frame.payload.equals(one.payload)
          )
            return false;
          if (((frame.flags & FLAG.maced) !== 0) !== (maced && one.maced)) return false;
        }
      }
      return true;
    }),
    { numRuns: 300 },
  );
});

t.test("the MAC is HMAC-SHA-256 over counter and frame, whichever way it is computed", async (t) => {
  const mac = new FrameMac(key);
  for (const [index, length] of [0, 6, 300, 4096, 4097, 20_000].entries()) {
    const head = randomBytes(length);
    const counter = Buffer.alloc(8);
    counter.writeUInt32BE(index, 4);
    t.equal(
      mac.next(head, null).toString("hex"),
      createHmac("sha256", key).update(counter).update(head).digest("hex"),
      `${length} bytes`,
    );
  }
});

t.test("garbage and cut frames are refused with a code and never crash", async () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.boolean(), (bytes, maced) => {
      const { reader } = pair(maced);
      const code = refusal(() => reader.read(Buffer.from(bytes)));
      return code === null
        ? !maced || bytes[0] === FRAME.data
        : code === "PROTOCOL_ERROR" || code === "FRAME_TOO_LARGE";
    }),
    { numRuns: 2000 },
  );
  fc.assert(
    fc.property(wish, fc.nat(), fc.nat(), (one, where, bit) => {
      if (one.kind === "data" && one.payload.length > INLINE_BYTES) return true;
      const { writer, reader } = pair(true);
      const message =
        one.kind === "control"
          ? writer.control(one.type, one.flags, one.stream, '{"a":1}')
          : writer.data(one.stream, one.timestamp, one.payload, true);
      // One changed bit, anywhere, is noticed. Without the flag a DATA frame may pass as unauthenticated bulk: the multiplexer's part.
      const changed = Buffer.from(message);
      changed[where % changed.length]! ^= 1 << (bit % 8);
      if (where % changed.length === 1 && (changed[1]! & FLAG.maced) === 0) return true;
      if (where % changed.length <= 1)
        return (
          refusal(() => reader.read(changed)) !== null ||
          (changed[1]! & FLAG.detached) !== 0 ||
          changed[0] === FRAME.data
        );
      return refusal(() => reader.read(changed)) === "PROTOCOL_ERROR";
    }),
    { numRuns: 500 },
  );
});

t.test("a repeated, left out or reordered frame breaks the MAC", async (t) => {
  const { writer, reader } = pair(true);
  const [first, second, third] = [1, 2, 3].map((n) => writer.control(FRAME.ping, 0, 0, `{"n":${n}}`)) as [
    Buffer,
    Buffer,
    Buffer,
  ];
  reader.read(first);
  t.equal(
    refusal(() => reader.read(first)),
    "PROTOCOL_ERROR",
    "repeated",
  );
  const other = new FrameReader(new FrameMac(key));
  other.read(first);
  t.equal(
    refusal(() => other.read(third)),
    "PROTOCOL_ERROR",
    "left out",
  );
  t.equal(
    refusal(() => pair(true).reader.read(second)),
    "PROTOCOL_ERROR",
    "reordered",
  );
  t.equal(
    refusal(() => pair(true).reader.read(new FrameWriter(null).control(FRAME.ping, 0, 0, '{"n":1}'))),
    "PROTOCOL_ERROR",
    "stripped",
  );
});

t.test("limits hold on both sides", async (t) => {
  const { writer, reader } = pair(false);
  t.equal(
    refusal(() => writer.control(FRAME.reset, 0, 1, "x".repeat(MAX_CONTROL_BYTES + 1))),
    "FRAME_TOO_LARGE",
  );
  const big = Buffer.alloc(MAX_CONTROL_BYTES + 7);
  big[0] = FRAME.ping;
  t.equal(
    refusal(() => reader.read(big)),
    "FRAME_TOO_LARGE",
  );
  const head = writer.data(2, 0, Buffer.alloc(INLINE_BYTES + 1), false);
  head.writeUInt32BE(MAX_DATA_BYTES + 1, 10);
  t.equal(
    refusal(() => reader.read(head)),
    "FRAME_TOO_LARGE",
  );
  const honest = writer.data(2, 0, Buffer.alloc(INLINE_BYTES + 1), false);
  reader.read(honest);
  t.equal(
    refusal(() => reader.read(Buffer.alloc(INLINE_BYTES))),
    "PROTOCOL_ERROR",
    "a payload of another length",
  );
  t.equal(
    refusal(() =>
      parseControl(
        { type: FRAME.ack, flags: 0, stream: 0, timestampUs: 0, payload: Buffer.from('{"bytes":1.5}') },
        ackSchema,
      ),
    ),
    "PROTOCOL_ERROR",
  );
  t.equal(
    refusal(() =>
      parseControl({ type: FRAME.ack, flags: 0, stream: 0, timestampUs: 0, payload: Buffer.from("{") }, ackSchema),
    ),
    "PROTOCOL_ERROR",
  );
  t.equal(Object.keys(FRAME_NAMES).length, Object.keys(FRAME).length);
  t.equal(MAC_BYTES, 16);
});
