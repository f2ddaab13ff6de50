import t from "tap";
import { Slots } from "./slots.ts";

t.test("a limit of 0 starts nothing; one that rises lets those go that wait", async (t) => {
  let limit = 0;
  const slots = new Slots(() => limit);
  const { signal } = new AbortController();
  let began = 0;
  const both = [slots.acquire(signal), slots.acquire(signal)].map((slot) =>
    slot.then((release) => {
      began++;
      return release;
    }),
  );
  slots.wake();
  await new Promise(setImmediate);
  t.equal(began, 0);
  limit = 1;
  slots.wake();
  const release = await Promise.race(both);
  await new Promise(setImmediate);
  t.equal(began, 1, "one at a time");
  release();
  await Promise.all(both);
  t.equal(began, 2);
});
