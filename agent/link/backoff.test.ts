import fc from "fast-check";
import t from "tap";
import { Backoff } from "./backoff.ts";
import { retryClass } from "./retry-table.ts";

const almostOne = 0.999_999;

t.test("windows double from 1 to 60 s, and every wait lies within its window", async (t) => {
  const longest = new Backoff(() => almostOne);
  const waits = Array.from({ length: 8 }, () =>
    Math.ceil(longest.next({ onlineMs: 0, retry: "later", retryAfterMs: null })),
  );
  t.same(waits, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
});

t.test("a stable link comes back at once, only once; a flapping one does not", async (t) => {
  const backoff = new Backoff(() => almostOne);
  const next = (onlineMs: number, retry: "retry" | "later" = "retry") =>
    Math.ceil(backoff.next({ onlineMs, retry, retryAfterMs: null }));
  t.equal(next(59_999), 1000, "not stable yet");
  t.equal(next(10_000), 2000, "flapping keeps the window");
  t.equal(next(60_000), 200);
  t.equal(next(0), 1000, "the quick dial failed");
  t.equal(next(0), 2000);
  t.equal(next(60_000, "later"), 1000, "superseded or refused: never at once");
});

t.test("the server's wish is a floor, and never-codes are asked about slowly for ever", async () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 0.999, noNaN: true }),
      fc.nat(600_000),
      fc.nat(1_000_000),
      fc.constantFrom("retry" as const, "later" as const, "never" as const),
      (random, retryAfterMs, onlineMs, retry) => {
        const backoff = new Backoff(() => random);
        const wait = backoff.next({ onlineMs, retry, retryAfterMs });
        return (
          wait >= retryAfterMs &&
          wait <= Math.max(60_000, retryAfterMs + 60_000) &&
          (retry !== "never" || wait >= 30_000)
        );
      },
    ),
  );
});

t.test("an attempt that met silence has waited already, and the next one comes not quite at once", async (t) => {
  const backoff = new Backoff(() => 0.5);
  const next = (triedMs: number, onlineMs = 0) =>
    backoff.next({ onlineMs, retry: "later", retryAfterMs: null, triedMs });
  const first = Array.from({ length: 15 }, () => next(4_000));
  t.same(new Set(first), new Set([100]), "for a minute of silence they follow one another");
  t.equal(next(4_000), 100, "of a window of 8 s, half, less what it took");
  t.same([next(4_000), next(4_000), next(4_000)], [4_000, 12_000, 26_000], "then the windows grow again");
  t.equal(backoff.next({ onlineMs: 0, retry: "later", retryAfterMs: 5_000, triedMs: 4_000 }), 5_000 + 30_000);
  t.equal(next(0, 60_000), 500, "a link was there");
  t.same(
    Array.from({ length: 14 }, () => next(4_000)),
    Array.from({ length: 14 }, () => 100),
    "the next silence is as short, as far as anybody knows",
  );
  const refused = new Backoff(() => 0.5);
  const waits = Array.from({ length: 5 }, () =>
    refused.next({ onlineMs: 0, retry: "later", retryAfterMs: null, triedMs: 20 }),
  );
  t.same(waits, [480, 980, 1_980, 3_980, 7_980], "a refusal is no silence");
});

t.test("reasons", async (t) => {
  t.equal(retryClass("LINK_LOST"), "retry");
  t.equal(retryClass("IDENTITY_REVOKED"), "never");
  t.equal(retryClass("STORE_DENIED"), "later", "a code that cannot end a link is treated with caution");
});
