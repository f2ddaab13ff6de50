// The header as the specification's own examples have it, and what must not pass for one.
import t from "tap";
import { childOf, formatTraceparent, parseTraceparent } from "./trace.ts";

const ID = "0af7651916cd43dd8448eb211c80319c";
const SPAN = "b7ad6b7169203331";

t.test("a context goes through its header unchanged", async (t) => {
  for (const flags of ["00", "01"]) {
    const text = `00-${ID}-${SPAN}-${flags}`;
    t.equal(formatTraceparent(parseTraceparent(text)!), text);
  }
  t.strictSame(parseTraceparent(`cc-${ID}-${SPAN}-09-what-the-future-brings`), {
    traceId: ID,
    spanId: SPAN,
    sampled: true,
  });
});

t.test("what is no context begins a new trace", async (t) => {
  const zero = "0".repeat(32);
  const bad = [
    undefined,
    ["a"],
    "",
    `ff-${ID}-${SPAN}-01`,
    `00-${zero}-${SPAN}-01`,
    `00-${ID}-${zero.slice(16)}-01`,
    `00-${ID.toUpperCase()}-${SPAN}-01`,
    `00-${ID}-${SPAN}-01-more`,
    `cc-${ID}-${SPAN}-01.more`,
    `00-${ID}-${SPAN}`,
    `00-${ID}-${SPAN}-01\n`,
    `cc-${ID}-${SPAN}-01-${"x".repeat(300)}`,
  ];
  for (const text of bad) t.equal(parseTraceparent(text), null, JSON.stringify(text));
});

t.test("ids are new, of the right length, and a child keeps the trace", async (t) => {
  const seen = new Set<string>();
  for (let i = 0; i < 2_000; i++) {
    const root = childOf(null);
    const child = childOf(root);
    t.match(root.traceId, /^[0-9a-f]{32}$/);
    t.equal(child.traceId, root.traceId);
    seen.add(root.traceId).add(root.spanId).add(child.spanId);
  }
  t.equal(seen.size, 6_000);
  t.equal(childOf({ traceId: ID, spanId: SPAN, sampled: false }).sampled, false);
});
