import { wait } from "@sallyport/protocol";
import t from "tap";
import { ManualClock } from "./clock.ts";

t.test("timers fire in order, each at its own time", async (t) => {
  const clock = new ManualClock(1_000_000);
  const fired: [string, number][] = [];
  const note = (name: string) => () => fired.push([name, clock.monotonic()]);
  clock.after(30, note("c"));
  clock.after(10, note("a"));
  clock.after(10, note("b"));
  clock.after(20, note("cancelled")).cancel();
  clock.after(31, note("later"));
  t.equal(clock.nextInMs, 10);
  await clock.advance(30);
  t.same(fired, [
    ["a", 10],
    ["b", 10],
    ["c", 30],
  ]);
  t.equal(clock.now(), 1_000_030);
  t.equal(clock.pending, 1);
});

t.test("what an answer arms fires within the same advance", async (t) => {
  const clock = new ManualClock();
  const steps: number[] = [];
  const loop = async () => {
    for (let i = 0; i < 5; i += 1) {
      await wait(clock, 1000);
      steps.push(clock.monotonic());
    }
  };
  const done = loop();
  await clock.advance(10_000);
  await done;
  t.same(steps, [1000, 2000, 3000, 4000, 5000]);
});

t.test("a jump of the wall clock fires nothing", async (t) => {
  const clock = new ManualClock(0);
  clock.after(10, () => t.fail("fired"));
  clock.jumpWall(3_600_000);
  await clock.advance(9);
  t.equal(clock.now(), 3_600_009);
  t.equal(clock.monotonic(), 9);
});
