import t from "tap";
import { ManualClock } from "../../test/support/clock.ts";
import { Door } from "./door.ts";

t.test(
  "a fleet that comes at once is let in as fast as greetings go, and asked back one after the other",
  async (t) => {
    const clock = new ManualClock();
    const limits = { greeting: 4, greetingPerAddress: 3 };
    const door = new Door(clock, limits);
    /** What a machine can do: greetings end one by one, each after so long. */
    const WORK_MS = 20;
    const under: { name: string; done(): void }[] = [];
    let most = 0;
    const met = new Set<string>();
    const comesBack: number[] = [];
    const begin = (name: string, address: string) => {
      under.push({ name, ...door.begun(address) });
      most = Math.max(most, under.length);
      t.ok(under.filter((one) => one.name.startsWith(address)).length <= limits.greetingPerAddress);
    };
    const come = (name: string, address: string): void => {
      if (door.free(address)) return begin(name, address);
      const back = (retryAfterMs: number) => {
        comesBack.push(clock.monotonic() + retryAfterMs);
        clock.after(retryAfterMs, () => come(name, address));
      };
      const place = door.wait(address, { begin: () => begin(name, address), refuse: back });
      if (place === null) back(door.book());
      else if (name === "a-gone") place.leave();
    };
    const work = () => {
      const one = under.shift();
      if (one !== undefined) {
        met.add(one.name);
        one.done();
      }
      clock.after(WORK_MS, work);
    };
    work();
    for (let n = 0; n < 600; n++) come(n === 20 ? "a-gone" : `a-${n}`, "a");
    come("b-0", "b");
    await clock.advance(WORK_MS * 10);
    t.ok(met.has("b-0"), "another address does not wait behind a fleet");
    await clock.advance(600 * WORK_MS * 2);
    t.equal(met.size, 600, "all came in within twice the time that the work takes");
    t.notOk(met.has("a-gone"));
    t.ok(most <= limits.greeting);
    const herd = Math.max(...comesBack.map((from) => comesBack.filter((at) => at >= from && at < from + 200).length));
    t.ok(comesBack.length > 100 && herd < 40, `no herd comes back: ${herd} within 200 ms`);
    for (const one of under.splice(0)) one.done();

    const blocked = [1, 2, 3].map(() => door.begun("a"));
    let told = 0;
    door.wait("a", { begin: () => t.fail("the door is closed"), refuse: (ms) => (told = ms) });
    door.close(5_000);
    t.equal(told, 5_000);
    for (const one of blocked) one.done();
  },
);
