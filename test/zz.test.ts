import t from "tap";
async function f(): Promise<number> { return 1; }
t.test("x", async (t) => { f(); t.rejects(f()); t.test("y", async () => {}); });
const k = "a" as "a" | "b";
switch (k) { case "a": break; }
