// Whatever way the bytes of lines are cut, the same values come out, and what is too long or cut off is said.
import fc from "fast-check";
import t from "tap";
import { NdjsonReader, ndjsonLine, readNdjson } from "./index.ts";

const MOST_BYTES = 200;

const cutAt = (bytes: Buffer, places: readonly number[]): Buffer[] => {
  const at = [0, ...places.map((place) => place % (bytes.length + 1)).toSorted((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, n) => bytes.subarray(at[n], end));
};

t.test("values come out as they went in, however the bytes are cut", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.jsonValue({ maxDepth: 2 }), { maxLength: 6 }),
      fc.array(fc.nat({ max: 4_000 }), { maxLength: 12 }),
      async (values, places) => {
        // An empty line is nothing.
        const lines = [Buffer.from("\n"), ...values.map((value) => ndjsonLine(value))];
        const bytes = Buffer.concat(lines);
        const read: unknown[] = [];
        const given = async function* () {
          yield* cutAt(bytes, places);
        };
        for await (const value of readNdjson(given())) read.push(value);
        return JSON.stringify(read) === JSON.stringify(values);
      },
    ),
  );
});

t.test("a line beyond the limit is refused, whole or in pieces; one at the limit is not", async (t) => {
  const line = (bytes: number) => Buffer.from(`"${"x".repeat(bytes - 2)}"\n`);
  for (const places of [[], [1], [50, 100, 150], [MOST_BYTES], [MOST_BYTES + 1]]) {
    const reader = new NdjsonReader(MOST_BYTES);
    const read = (bytes: Buffer) => cutAt(bytes, places).flatMap((chunk) => [...reader.read(chunk)]);
    t.equal((read(line(MOST_BYTES))[0] as string).length, MOST_BYTES - 2);
    t.throws(() => read(line(MOST_BYTES + 1)), { code: "PROTOCOL_ERROR" });
  }
});

t.test("a line that is cut off, or no JSON, is refused", async (t) => {
  const reader = new NdjsonReader();
  t.same([...reader.read(Buffer.from("1\n2"))], [1]);
  t.throws(() => reader.end(), { code: "PROTOCOL_ERROR" });
  t.throws(() => [...reader.read(Buffer.from("}\n"))], { code: "PROTOCOL_ERROR" });
});
