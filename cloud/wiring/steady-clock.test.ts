import fc from "fast-check";
import t from "tap";
import { ManualClock } from "../../test/support/clock.ts";
import { steadyClock } from "./steady-clock.ts";

const HOUR = 3600_000;
const DAY = 24 * HOUR;

function scene({ uptimeMs = DAY }: { uptimeMs?: number } = {}) {
  const machine = new ManualClock();
  const jumps: number[] = [];
  let sleptMs = 0;
  const clock = steadyClock({
    machine,
    uptimeMs: () => uptimeMs + machine.monotonic() + sleptMs,
    onJump: (byMs) => jumps.push(byMs),
  });
  return { machine, clock, jumps, sleep: (ms: number) => (machine.jumpWall(ms), (sleptMs += ms)) };
}

for (const byMs of [DAY, -DAY])
  t.test(`a jump of ${byMs / HOUR} h`, async (t) => {
    const { machine, clock, jumps } = scene();
    const start = clock.now();
    machine.jumpWall(byMs);
    t.equal(clock.now(), start, "moves nothing");
    t.same(jumps, [byMs], "and is told");
    for (let n = 0; n < 60; n++) {
      await machine.advance(60_000);
      clock.now();
    }
    t.ok(Math.abs(clock.now() - start - HOUR) <= 0.01 * HOUR + 1, "an hour is an hour, to one in a hundred");
    t.equal(jumps.length, 1, "told once");
    machine.jumpWall(-byMs);
    clock.now();
    t.equal(jumps.length, 2, "the way back is told too");
  });

t.test("a second's difference is made up", async (t) => {
  const { machine, clock, jumps } = scene();
  machine.jumpWall(900);
  for (let n = 0; n < 200; n++) {
    await machine.advance(1000);
    clock.now();
  }
  t.equal(clock.now(), machine.now());
  t.same(jumps, []);
});

t.test("sleep is time that has passed", async (t) => {
  const { clock, jumps, sleep } = scene();
  const start = clock.now();
  sleep(8 * HOUR);
  t.equal(clock.now(), start + 8 * HOUR);
  t.same(jumps, []);
});

t.test("a clock that is set while the machine starts was wrong before", async (t) => {
  const { machine, clock, jumps } = scene({ uptimeMs: 20_000 });
  const start = clock.now();
  machine.jumpWall(3 * HOUR);
  t.equal(clock.now(), start + 3 * HOUR);
  t.same(jumps, []);
});

t.test("whatever the machine's clock does, time never runs back and durations hold", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ jumpMs: fc.integer({ min: -DAY, max: DAY }), passMs: fc.integer({ min: 0, max: HOUR }) }), {
        maxLength: 30,
      }),
      async (acts) => {
        const { machine, clock } = scene();
        for (const { jumpMs, passMs } of acts) {
          const before = clock.now();
          machine.jumpWall(jumpMs);
          const same = clock.now();
          await machine.advance(passMs);
          const after = clock.now();
          if (same < before || after < same) return false;
          if (Math.abs(after - same - passMs) > 0.01 * passMs + 2) return false;
        }
        return true;
      },
    ),
    { numRuns: 200 },
  );
});
