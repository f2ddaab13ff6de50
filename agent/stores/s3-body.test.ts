// Large bodies read below the HTTP parser, from a real server.
import { randomBytes } from "node:crypto";
import { createServer, get, type IncomingMessage, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import t from "tap";
import { socketBody } from "./s3-body.ts";

const MIB = 1024 * 1024;

async function answerOf(t: { teardown(fn: () => unknown): void }, listener: RequestListener): Promise<IncomingMessage> {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(() => (server.closeAllConnections(), server.close()));
  return await new Promise((resolve, reject) =>
    get({ port: (server.address() as AddressInfo).port }, resolve).once("error", reject),
  );
}

async function read(source: AsyncIterator<Buffer>, pauseMs = 0): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (;;) {
    const { done, value } = await source.next();
    if (done === true) return Buffer.concat(pieces);
    pieces.push(value);
    if (pauseMs > 0 && pieces.length % 16 === 0) await sleep(pauseMs);
  }
}

t.test("comes whole and in order, to a quick reader and a slow one", async (t) => {
  const content = randomBytes(12 * MIB + 17);
  for (const pauseMs of [0, 5]) {
    const answer = await answerOf(t, (_request, response) => {
      response.setHeader("content-length", content.length);
      // Its first bytes come with the head, through the parser; small pieces follow.
      for (let at = 0; at < MIB; at += 1000) response.write(content.subarray(at, Math.min(at + 1000, MIB)));
      response.end(content.subarray(MIB));
    });
    const { socket } = answer;
    t.ok((await read(socketBody(answer, content.length)!, pauseMs)).equals(content));
    t.ok(socket.destroyed, "the connection is not used again");
  }
});

t.test("one that is broken off ends early, also when it was destroyed by its reader", async (t) => {
  const half = (response: Parameters<RequestListener>[1]) => {
    response.setHeader("content-length", 12 * MIB);
    response.write(Buffer.alloc(6 * MIB));
  };
  const cut = await answerOf(t, (_request, response) => {
    half(response);
    setTimeout(() => response.socket!.end(), 50);
  });
  cut.on("error", () => {});
  t.equal((await read(socketBody(cut, 12 * MIB)!)).length, 6 * MIB);

  const left = await answerOf(t, (_request, response) => half(response));
  left.on("error", () => {});
  const source = socketBody(left, 12 * MIB)!;
  const reading = read(source);
  setTimeout(() => left.destroy(), 50);
  t.ok((await reading).length <= 6 * MIB);
});

t.test("many that nobody reads hold little each, and come whole all the same", async (t) => {
  const COUNT = 10;
  const content = randomBytes(9 * MIB);
  const answers = await Promise.all(
    Array.from({ length: COUNT }, () =>
      answerOf(t, (_request, response) => {
        response.setHeader("content-length", content.length);
        response.end(content);
      }),
    ),
  );
  const bodies = answers.map((answer) => ({
    answer,
    source: socketBody(answer, content.length)!,
    head: [] as Buffer[],
  }));
  // Beyond what the first had taken while they were few.
  for (const { source, head } of bodies)
    while (Buffer.concat(head).length < MIB) head.push((await source.next()).value as Buffer);
  const waiting = () =>
    bodies.reduce((sum, { answer, head }) => sum + answer.socket.bytesRead - Buffer.concat(head).length, 0);
  while (!bodies.every(({ answer }) => answer.socket.isPaused())) await new Promise((resolve) => setImmediate(resolve));
  // Of each: what it may hold, the read that came to more, and one that the paused socket keeps; alone it may hold more.
  t.ok(waiting() < COUNT * 4 * 64 * 1024, `${waiting()} bytes wait`);
  for (const { source, head } of bodies) t.ok(Buffer.concat([...head, await read(source)]).equals(content));
});

t.test("small ones and chunked ones are left to the parser", async (t) => {
  const small = await answerOf(t, (_request, response) => response.end("small"));
  t.equal(socketBody(small, 5), null);
  const chunked = await answerOf(t, (_request, response) => {
    response.write(Buffer.alloc(9 * MIB));
    response.end();
  });
  t.equal(socketBody(chunked, 9 * MIB), null);
  small.destroy();
  chunked.destroy();
});
