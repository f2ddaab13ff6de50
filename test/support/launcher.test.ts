import { existsSync } from "node:fs";
import t from "tap";
import { WaitTimeout, runProgram, startProgram, tempDir, waitFor } from "./launcher.ts";
import type { Teardown } from "./launcher.ts";
import { sampleRss } from "./rss.ts";

const script = (code: string) => ["--input-type=module", "-e", code];

t.test("a program gets none of the test's own environment", async (t) => {
  process.env["SALLYPORT_PLANTED"] = "x";
  t.teardown(() => delete process.env["SALLYPORT_PLANTED"]);
  const { stdout, code } = await runProgram(t, {
    name: "env",
    args: script("console.log(JSON.stringify([process.env, process.execArgv]))"),
    env: { OWN: "1" },
  });
  t.equal(code, 0);
  const [env] = JSON.parse(stdout) as [Record<string, string>];
  t.equal(env["OWN"], "1");
  t.same(
    Object.keys(env).filter((name) => /TAP|NODE_OPTIONS|SALLYPORT|npm_|^CI$/.test(name)),
    [],
  );
});

t.test("waits for a line that comes in pieces, and stops with SIGTERM", async (t) => {
  const program = startProgram(t, {
    name: "talker",
    args: script(`
      process.on("SIGTERM", () => { console.log("bye"); process.exit(7); });
      process.stdout.write("listening on ");
      setTimeout(() => process.stdout.write("4711\\n"), 20);
      setInterval(() => {}, 1000);`),
  });
  const [, port] = await program.waitForOutput(/listening on (\d+)\n/);
  t.equal(port, "4711");
  t.same(await program.stop(), { code: 7, signal: null });
  t.match(program.stdout, /bye/);
});

t.test("fails at once when the program ends without the line, and shows what it said", async (t) => {
  const program = startProgram(t, { name: "broken", args: script(`console.error("no such file"); process.exit(3)`) });
  await t.rejects(program.waitForOutput(/ready/, { timeoutMs: 60_000 }), { message: /exit code 3[^]*no such file/ });
});

t.test("a deaf program is killed after its grace, and at the end of its test", async (t) => {
  const deaf = {
    name: "deaf",
    args: script(`process.on("SIGTERM", () => {}); console.log("up"); setInterval(() => {}, 1000)`),
  };
  const stopped = startProgram(t, deaf);
  await stopped.waitForOutput(/up/);
  t.same(await stopped.stop({ graceMs: 50 }), { code: null, signal: "SIGKILL" });

  const teardowns: (() => unknown)[] = [];
  const inner: Teardown = { teardown: (fn) => void teardowns.push(fn) };
  const left = startProgram(inner, deaf);
  await left.waitForOutput(/up/);
  for (const fn of teardowns) await fn();
  t.same(left.exit, { code: null, signal: "SIGKILL" });
});

t.test("a program that cannot be started says so", async (t) => {
  const result = await runProgram(t, { name: "absent", command: "/nonexistent/program", args: [] });
  t.equal(result.code, 127);
  t.match(result.stderr, /ENOENT/);
});

t.test("waitFor names what it waited for, with the last cause", async (t) => {
  let asked = 0;
  t.equal(await waitFor("a third question", () => (asked += 1) === 3 && "yes", { everyMs: 1 }), "yes");
  const refused = () => {
    throw new Error("not there");
  };
  const error: unknown = await waitFor("the thing", refused, { timeoutMs: 5, everyMs: 1 }).catch(
    (caught: unknown) => caught,
  );
  t.type(error, WaitTimeout);
  t.match(error, { message: /the thing/, cause: { message: "not there" } });
});

t.test("temporary folders go with their test", async (t) => {
  let dir = "";
  await t.test("inner", async (t) => {
    dir = tempDir(t);
    t.ok(existsSync(dir));
  });
  t.notOk(existsSync(dir));
});

t.test(
  "resident memory: the peak is seen, also after it has gone",
  { skip: process.platform !== "linux" && "reads /proc" },
  async (t) => {
    const program = startProgram(t, {
      name: "eater",
      args: script(`
      let food = Buffer.alloc(300 << 20, 1);
      setTimeout(() => { food = undefined; globalThis.gc(); console.log("done"); }, 400);
      setInterval(() => {}, 1000);`).toSpliced(0, 0, "--expose-gc"),
    });
    const rss = sampleRss(program.pid, { everyMs: 50 });
    await program.waitForOutput(/done/);
    const { peakBytes, samples } = rss.stop();
    t.ok(peakBytes > 300 << 20, `peak ${peakBytes >> 20} MiB`);
    t.ok(samples >= 4, `${samples} samples`);
  },
);
