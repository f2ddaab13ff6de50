// Held against Node's own parser: what is read here is read there, and as the same; what is well-formed is read.
import { request } from "node:http";
import { Duplex } from "node:stream";
import fc from "fast-check";
import t from "tap";
import { AnswerParser, MalformedAnswer } from "./answer-parser.ts";

interface Read {
  status: number;
  headers: string[];
  body: string;
}

/** null: not whole, or refused. */
function ours(method: string, pieces: Buffer[]): { read: Read | null; keepAlive: boolean; pieces: number } {
  let head: { status: number; headers: string[] } | null = null;
  const body: Buffer[] = [];
  let ends = 0;
  let given = 0;
  const parser = new AnswerParser({
    head: (status, headers) => {
      if (head !== null) throw new Error("two heads");
      head = { status, headers };
    },
    body: (chunk) => {
      if (head === null || ends > 0) throw new Error("a body out of turn");
      body.push(Buffer.from(chunk));
    },
    end: () => (ends += 1),
  });
  parser.expect(method);
  // As on a connection: all that is read lies in one buffer, overwritten each time.
  const shared = Buffer.alloc(Math.max(1, ...pieces.map((piece) => piece.length)));
  try {
    for (const piece of pieces) {
      given += 1;
      piece.copy(shared);
      parser.execute(shared.subarray(0, piece.length));
      if (ends > 0) break;
    }
    if (ends === 0) parser.close();
  } catch (error) {
    if (!(error instanceof MalformedAnswer)) throw error;
    return { read: null, keepAlive: false, pieces: given };
  }
  if (ends > 1) throw new Error("two ends");
  if (ends === 0) return { read: null, keepAlive: false, pieces: given };
  const read = { ...head!, body: Buffer.concat(body).toString("latin1") };
  return { read, keepAlive: parser.keepAlive, pieces: given };
}

function nodes(method: string, pieces: Buffer[]): Promise<Read | null> {
  return new Promise((resolve) => {
    const wire = new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() });
    const asked = request({ method, createConnection: () => wire, maxHeaderSize: 48 * 1024 }, (response) => {
      const body: Buffer[] = [];
      response.on("data", (chunk: Buffer) => body.push(chunk));
      response.on("error", () => resolve(null));
      response.on("close", () => {
        const headers = response.rawHeaders.map((text, i) => (i % 2 === 0 ? text.toLowerCase() : text));
        const read = { status: response.statusCode!, headers, body: Buffer.concat(body).toString("latin1") };
        resolve(response.complete ? read : null);
      });
    });
    asked.on("error", () => resolve(null));
    asked.on("upgrade", () => resolve(null));
    // The response may close after it.
    asked.on("close", () => setImmediate(() => setImmediate(() => resolve(null))));
    asked.end();
    setImmediate(() => {
      for (const piece of pieces) wire.push(piece);
      wire.push(null);
    });
  });
}

const text = (of: RegExp) => fc.stringMatching(of);
const answers = fc.record({
  method: fc.constantFrom("GET", "POST", "HEAD"),
  before: fc.constantFrom("", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"),
  version: fc.constantFrom("1.1", "1.1", "1.1", "1.0"),
  status: fc.constantFrom(200, 201, 204, 304, 404, 500, 503),
  reason: fc.constantFrom(" OK", " ", " Not Found At All", " \xe9"),
  headers: fc.array(
    fc.tuple(text(/^x-[A-Za-z0-9!#$%&'*+.^_`|~-]{0,12}$/), text(/^[\t ]?[\x21-\x7e\x80-\xff]{0,20}[\t ]?$/)),
    { maxLength: 5 },
  ),
  connection: fc.constantFrom("", "connection: close\r\n", "Connection: keep-alive\r\nkeep-alive: timeout=5\r\n"),
  framing: fc.constantFrom("length", "chunked", "close"),
  body: fc.array(fc.uint8Array({ minLength: 1, maxLength: 300 }), { maxLength: 4 }),
  extension: fc.constantFrom("", ";a=b", ";a"),
  trailer: fc.constantFrom("", "x-late: yes\r\n"),
  cuts: fc.array(fc.nat(), { maxLength: 6 }),
});
type Answer = typeof answers extends fc.Arbitrary<infer T> ? T : never;

function written(answer: Answer): Buffer {
  const whole = Buffer.concat(answer.body);
  const bare = answer.method === "HEAD" || answer.status === 204 || answer.status === 304;
  const chunked = answer.framing === "chunked" && answer.version === "1.1" && answer.status !== 204;
  let head = `${answer.before}HTTP/${answer.version} ${answer.status}${answer.reason}\r\n${answer.connection}`;
  for (const [name, value] of answer.headers) head += `${name}:${value}\r\n`;
  if (chunked) head += "Transfer-Encoding: Chunked\r\n";
  else if (answer.framing === "length" && answer.status !== 204) head += `Content-Length: ${whole.length}\r\n`;
  const parts = [Buffer.from(`${head}\r\n`, "latin1")];
  if (bare) return parts[0]!;
  if (!chunked) return Buffer.concat([parts[0]!, whole]);
  for (const piece of answer.body)
    parts.push(
      Buffer.from(`${piece.length.toString(16)}${answer.extension}\r\n`),
      Buffer.from(piece),
      Buffer.from("\r\n"),
    );
  parts.push(Buffer.from(`0\r\n${answer.trailer}\r\n`));
  return Buffer.concat(parts);
}

function cut(bytes: Buffer, at: number[]): Buffer[] {
  const ends = [...at.map((one) => one % (bytes.length + 1)), bytes.length].sort((a, b) => a - b);
  return ends.map((end, i) => bytes.subarray(i === 0 ? 0 : ends[i - 1], end)).filter((piece) => piece.length > 0);
}

t.test("what is well-formed is read, wherever it is cut", async (t) => {
  let kept = 0;
  await fc.assert(
    fc.asyncProperty(answers, async (answer) => {
      const bytes = written(answer);
      const { read, keepAlive } = ours(answer.method, cut(bytes, answer.cuts));
      if (read === null) throw new Error("not read");
      const other = await nodes(answer.method, [bytes]);
      if (JSON.stringify(read) !== JSON.stringify(other)) throw new Error(JSON.stringify({ read, other }));
      if (keepAlive) kept += 1;
      // A stranger's bytes behind it, in the same packet: the answer stands, the connection does not.
      if (keepAlive && ours(answer.method, [Buffer.concat([bytes, Buffer.from("HTTP/1.1")])]).keepAlive)
        throw new Error("kept with bytes left over");
    }),
    { numRuns: 1500 },
  );
  t.ok(kept > 300, `${kept} connections may be used again`);
});

t.test("what is read here, Node reads the same", async (t) => {
  let read = 0;
  const harm = fc.record({
    at: fc.nat(),
    drop: fc.nat({ max: 2 }),
    put: fc.constantFrom(
      "",
      "\r",
      "\n",
      "\r\n",
      " ",
      "\t",
      "\0",
      ":",
      ",",
      ";",
      "0",
      "1",
      "f",
      "-",
      "+",
      "\xff",
      "content-length: 3\r\n",
      "transfer-encoding: gzip\r\n",
      "Transfer-Encoding: chunked\r\n",
    ),
  });
  await fc.assert(
    fc.asyncProperty(answers, fc.array(harm, { minLength: 1, maxLength: 2 }), async (answer, harms) => {
      let bytes = written(answer);
      for (const { at, drop, put } of harms) {
        const from = at % bytes.length;
        bytes = Buffer.concat([bytes.subarray(0, from), Buffer.from(put, "latin1"), bytes.subarray(from + drop)]);
      }
      const mine = ours(answer.method, cut(bytes, answer.cuts)).read;
      if (mine === null) return;
      read += 1;
      // What is left over is nobody's: the connection ends there. Node takes it amiss where it was to end anyway.
      const used = ours(
        answer.method,
        Array.from(bytes, (_, i) => bytes.subarray(i, i + 1)),
      ).pieces;
      const other = await nodes(answer.method, [bytes.subarray(0, used)]);
      if (JSON.stringify(mine) !== JSON.stringify(other))
        throw new Error(JSON.stringify({ mine, other, bytes: bytes.toString("latin1") }));
    }),
    { numRuns: 4000 },
  );
  t.ok(read > 100, `${read} of them were read`);
});

t.test("what leaves room for a second reading is refused", (t) => {
  const refused = (answer: string) => ours("GET", [Buffer.from(answer, "latin1")]).read === null;
  for (const answer of [
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\nx: a\r\n content-length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\ncontent-length: 2\n\nab",
    "HTTP/1.1 200 OK\r\nx: a\nb: c\r\ncontent-length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\nx: a\0\r\ncontent-length: 2\r\n\r\nab",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2 \r\nab\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;a\nb\r\nab\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    "HTTP/2 200\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    `HTTP/1.1 200 OK\r\nx: ${"a".repeat(33_000)}\r\n\r\n`,
    "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc",
  ])
    t.ok(refused(answer), JSON.stringify(answer.slice(0, 90)));
  t.end();
});
