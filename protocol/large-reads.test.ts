// Reads into buffers of ours, on real sockets: that this Node does it at all, and that nothing else of the socket changes.
import { randomBytes } from "node:crypto";
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import t, { type Test } from "tap";
import { readInto } from "./large-reads.ts";

const BLOCK_BYTES = 256 * 1024;

async function pair(t: Test): Promise<{ near: Socket; far: Socket }> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const far = connect((server.address() as AddressInfo).port, "127.0.0.1");
  const near = await accepted;
  t.teardown(() => (near.destroy(), far.destroy(), server.close()));
  return { near, far };
}

t.test("more than 64 KiB at a time, in order, stopped and resumed, to the end", async (t) => {
  const { near, far } = await pair(t);
  const content = randomBytes(8 * 1024 * 1024 + 5);
  let came = 0;
  let right = true;
  let largest = 0;
  let reads = 0;
  let room: Buffer = Buffer.alloc(0);
  const switched = new Promise<void>((resolve) =>
    near.once("data", (first) => {
      right &&= first.equals(content.subarray(0, first.length));
      came = first.length;
      t.ok(
        readInto(near, {
          room: () => (room = Buffer.alloc(BLOCK_BYTES)),
          filled(bytes) {
            right &&= room.subarray(0, bytes).equals(content.subarray(came, came + bytes));
            came += bytes;
            largest = Math.max(largest, bytes);
            if (++reads % 4 !== 0) return true;
            setImmediate(() => near.resume());
            return false;
          },
        }),
        "this Node can",
      );
      t.notOk(readInto(near, { room: () => room, filled: () => true }), "once");
      near.on("data", () => t.fail("it is no longer emitted"));
      resolve();
    }),
  );
  const ended = new Promise((resolve) => near.once("end", resolve));
  far.write(content.subarray(0, 1000));
  await switched;
  far.end(content.subarray(1000));
  await ended;
  t.ok(right);
  t.equal(came, content.length);
  t.ok(largest > 64 * 1024, `${largest} bytes at most came at a time`);
});

t.test("a paused socket reads nothing, and a destroyed one is closed", async (t) => {
  const { near, far } = await pair(t);
  let came = 0;
  const room = Buffer.alloc(BLOCK_BYTES);
  t.ok(readInto(near, { room: () => room, filled: (bytes) => ((came += bytes), true) }));
  near.pause();
  await new Promise<void>((resolve) => far.write(Buffer.alloc(1000), () => resolve()));
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
  t.equal(came, 0);
  near.resume();
  while (came < 1000) await new Promise((resolve) => setImmediate(resolve));
  const closed = new Promise((resolve) => near.once("close", resolve));
  near.destroy();
  await closed;
});

t.test("what the socket holds comes first, and what is no TCP socket is left alone", async (t) => {
  const { near, far } = await pair(t);
  near.pause();
  const room = Buffer.alloc(BLOCK_BYTES);
  const target = { room: () => room, filled: () => true };
  // Reads ahead once, as any stream does.
  near.read(0);
  far.write(Buffer.alloc(1000));
  while (near.readableLength === 0) await new Promise((resolve) => setImmediate(resolve));
  t.notOk(readInto(near, target));
  t.equal((near.read() as Buffer).length, 1000);
  t.ok(readInto(near, target));
  t.notOk(readInto({ readableLength: 0 }, target));
});
