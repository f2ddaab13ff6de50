// Real processes, a real host, real kills.
import { spawn } from "node:child_process";
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t, { type Test } from "tap";
import { systemClock, wait } from "@sallyport/protocol";
import { workName, type WorkSpec } from "../engine.ts";
import { createProcessEngine, type ProcessEngine } from "./process-engine.ts";
import { alive, allProcs, readProc } from "./proc.ts";

const until = async (what: string, holds: () => boolean): Promise<void> => {
  const begin = performance.now();
  while (performance.now() - begin < 60_000) {
    if (holds()) return;
    await wait(systemClock, 10);
  }
  throw new Error(`never: ${what}`);
};

/** Hosts of this state directory, by their command line. */
function hostsOf(stateDir: string): number[] {
  return allProcs()
    .filter((p) => alive(p))
    .filter((p) => {
      try {
        const args = readFileSync(`/proc/${p.pid}/cmdline`, "latin1").split("\0");
        return args.some((a) => a.includes("host-main")) && args.includes(join(stateDir, "host"));
      } catch {
        return false;
      }
    })
    .map((p) => p.pid);
}

function killAll(pids: number[]): void {
  for (const pid of pids) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // It ended by itself.
    }
  }
}

function scene(t: Test): {
  stateDir: string;
  engine: ProcessEngine;
  work: string;
  spec: (step: string, script: string, env?: Record<string, string>) => WorkSpec;
  lines: () => string[];
  killHost: () => Promise<void>;
} {
  const stateDir = mkdtempSync(join(tmpdir(), "sallyport-engine-"));
  const work = join(stateDir, "work");
  mkdirSync(work);
  const engine = createProcessEngine({ stateDir, clock: systemClock });
  t.teardown(async () => {
    for (const { name } of await engine.list().catch(() => [])) await engine.stop(name, 0);
    engine.close();
    killAll(hostsOf(stateDir));
    await until("host gone", () => hostsOf(stateDir).length === 0);
    rmSync(stateDir, { recursive: true, force: true });
  });
  return {
    stateDir,
    engine,
    work,
    spec: (step, script, env = {}) => ({
      name: workName("cmd", step, 1),
      executable: "/bin/sh",
      args: ["-c", script],
      env: { PATH: "/usr/bin:/bin", ...env },
      cwd: work,
      stdout: join(work, `${step}.out`),
      stderr: join(work, `${step}.err`),
      container: null,
    }),
    lines: () =>
      existsSync(join(work, "effect")) ? readFileSync(join(work, "effect"), "utf8").split("\n").slice(0, -1) : [],
    async killHost() {
      const pids = hostsOf(stateDir);
      killAll(pids);
      await until("host dead", () => pids.every((pid) => !alive(readProc(pid))));
    },
  };
}

await t.test("ends are told apart, and a name begins once", async (t) => {
  const { engine, spec, work, lines } = scene(t);
  const exited = async (step: string, script: string, env?: Record<string, string>) => {
    await engine.start(spec(step, script, env));
    return engine.ended(workName("cmd", step, 1));
  };
  t.match(await exited("ok", "echo out; echo err >&2; echo x >> effect"), {
    state: "exited",
    code: 0,
    signal: null,
    reason: "exit",
  });
  t.equal(readFileSync(join(work, "ok.out"), "utf8"), "out\n");
  t.equal(readFileSync(join(work, "ok.err"), "utf8"), "err\n");
  t.match(await engine.start(spec("ok", "echo y >> effect")), { state: "exited", code: 0 }, "the same name again");
  t.same(lines(), ["x"]);
  t.match(await exited("seven", "exit 7"), { code: 7, signal: null, reason: "exit" });
  t.match(await exited("segv", "kill -SEGV $$"), { code: null, signal: "SIGSEGV", reason: "exit" });
  t.equal(readFileSync(join(work, "segv.err"), "utf8"), "", "the shell's remarks are not the step's words");
  await exited("env", "env | sort", { SECRET_X: "hush-hush-1" });
  t.same(
    readFileSync(join(work, "env.out"), "utf8")
      .split("\n")
      .filter((line) => line.includes("="))
      .map((line) => line.split("=")[0])
      .filter((name) => name !== "PWD"),
    ["PATH", "SALLYPORT_WORK", "SECRET_X"],
  );
  t.match(await engine.status(workName("cmd", "never", 1)), { state: "absent" });
  await t.rejects(engine.start({ ...spec("no", ""), executable: "/no/such" }), {
    code: "ENGINE_FAILED",
    message: /\/no\/such/,
  });
  t.match(await engine.status(workName("cmd", "no", 1)), { state: "absent" });
  t.equal((await engine.list()).length, 4);
  await engine.forget(workName("cmd", "ok", 1));
  t.match(await engine.status(workName("cmd", "ok", 1)), { state: "absent" });
});

await t.test("socket, token and records are the user's alone, and hold no value of the environment", async (t) => {
  const { engine, spec, stateDir } = scene(t);
  await engine.start(spec("s", "sleep 30", { API_KEY: "canary-1234567890" }));
  const host = join(stateDir, "host");
  t.equal(statSync(host).mode & 0o777, 0o700);
  t.equal(statSync(join(host, "host.sock")).mode & 0o777, 0o600);
  t.equal(statSync(join(host, "token")).mode & 0o777, 0o600);
  for (const file of readdirSync(host, { recursive: true, withFileTypes: true })) {
    if (file.isFile())
      t.notMatch(readFileSync(join(file.parentPath, file.name), "latin1"), /canary-1234567890/, file.name);
  }
  // A peer without the token learns nothing.
  const fd = openSync(host, "r");
  const socket = connect(`/proc/self/fd/${fd}/host.sock`);
  let heard = "";
  socket.on("data", (d) => (heard += d.toString()));
  socket.on("error", () => undefined);
  socket.write(`{"protocol":1,"token":"${"0".repeat(64)}"}\n{"id":1,"op":"list","input":{}}\n`);
  await new Promise((resolve) => socket.once("close", resolve));
  t.equal(heard, "");
  closeSync(fd);
});

await t.test("a killed host: the work goes on, and its successor finds it, running or ended", async (t) => {
  const { engine, spec, lines, work, killHost } = scene(t);
  await engine.start(spec("a", "echo a >> effect; while [ ! -e go-a ]; do sleep 0.05; done; exit 3"));
  await engine.start(spec("b", "echo b >> effect; while [ ! -e go-b ]; do sleep 0.05; done; exit 4"));
  await until("both began", () => lines().length === 2);
  const ended = engine.ended(workName("cmd", "a", 1));
  await killHost();
  writeFileSync(join(work, "go-b"), "");
  t.match(await engine.status(workName("cmd", "a", 1)), { state: "running" });
  t.match(
    await engine.start(spec("a", "echo again >> effect")),
    { state: "running" },
    "a second start changes nothing",
  );
  writeFileSync(join(work, "go-a"), "");
  t.match(await ended, { code: 3, reason: "exit" }, "the wait outlived the host");
  t.match(
    await engine.ended(workName("cmd", "b", 1)),
    { code: 4, reason: "exit" },
    "ended while there was no host, or after",
  );
  await killHost();
  t.match(await engine.status(workName("cmd", "b", 1)), { code: 4 });
  t.same(lines().sort(), ["a", "b"]);
});

await t.test("hosts killed around many starts: each effect once", async (t) => {
  const { engine, spec, lines, stateDir } = scene(t);
  let stop = false;
  const killer = (async () => {
    for (let i = 0; i < 6 && !stop; i++) {
      await wait(systemClock, 60 + i * 37);
      killAll(hostsOf(stateDir));
    }
  })();
  const steps = Array.from({ length: 24 }, (_, i) => `s${i}`);
  await Promise.all(
    steps.map(async (step) => {
      await engine.start(spec(step, `echo ${step} >> effect; sleep 0.1; exit 5`));
      t.match(await engine.ended(workName("cmd", step, 1)), { code: 5 }, step);
    }),
  );
  stop = true;
  await killer;
  t.same(lines().sort(), [...steps].sort());
});

await t.test("a wrapper that was killed: nobody says how it ended, and it is not begun again", async (t) => {
  const { engine, spec, lines, killHost } = scene(t);
  const began = await engine.start(spec("w", "echo w >> effect; sleep 60"));
  await until("began", () => lines().length === 1);
  await killHost();
  process.kill((began as { pid: number }).pid, "SIGKILL");
  t.match(await engine.status(workName("cmd", "w", 1)), { state: "running" }, "the program itself goes on");
  t.same((await engine.stop(workName("cmd", "w", 1), 0)).stopped.length >= 1, true);
  t.match(await engine.ended(workName("cmd", "w", 1)), { code: null, reason: "killed" });
  t.match(await engine.start(spec("w", "echo again >> effect")), { state: "exited" });
  t.same(lines(), ["w"]);
});

await t.test("stop takes the whole tree: what ignores TERM, and what left session and group", async (t) => {
  const { engine, spec, work } = scene(t);
  const pids = (): number[] =>
    ["p1", "p2", "p3"].flatMap((f) =>
      existsSync(join(work, f)) && readFileSync(join(work, f), "utf8").endsWith("\n")
        ? [Number(readFileSync(join(work, f), "utf8"))]
        : [],
    );
  await engine.start(
    spec(
      "tree",
      `trap '' TERM; echo $$ > p1; setsid sh -c 'trap "" TERM; echo $$ > p2; while :; do sleep 1; done' & (sh -c 'echo $$ > p3; exec sleep 1000' &) ; while :; do sleep 1; done`,
    ),
  );
  await until("all there", () => pids().length === 3);
  const { stopped } = await engine.stop(workName("cmd", "tree", 1), 200);
  t.ok(stopped.length >= 3, stopped.join(", "));
  for (const pid of pids()) t.notOk(alive(readProc(pid)), `process ${pid} is gone`);
  t.match(await engine.status(workName("cmd", "tree", 1)), { state: "exited", reason: "killed", signal: "SIGKILL" });
  t.same(await engine.stop(workName("cmd", "tree", 1), 200), { stopped: [] });
});

await t.test("what is left behind holds neither the end nor the machine", async (t) => {
  const { engine, spec, work } = scene(t);
  await engine.start(spec("left", "sleep 1000 & echo $! > left; (setsid sleep 1000 &); exit 0"));
  t.match(await engine.ended(workName("cmd", "left", 1)), { code: 0, reason: "exit" });
  t.notOk(alive(readProc(Number(readFileSync(join(work, "left"), "utf8")))));
});

await t.test("a graceful end within the grace keeps its code", async (t) => {
  const { engine, spec, work } = scene(t);
  await engine.start(spec("soft", "trap 'echo bye; exit 0' TERM; touch ready; while :; do sleep 0.05; done"));
  await until("ready", () => existsSync(join(work, "ready")));
  await engine.stop(workName("cmd", "soft", 1), 10_000);
  t.match(await engine.status(workName("cmd", "soft", 1)), { code: 0, reason: "exit" });
  t.equal(readFileSync(join(work, "soft.out"), "utf8"), "bye\n");
});

await t.test("several agents start at once on one state directory: one host", async (t) => {
  const { stateDir, spec, lines } = scene(t);
  const driver = join(stateDir, "driver.ts");
  writeFileSync(
    driver,
    `import { createProcessEngine } from ${JSON.stringify(new URL("./process-engine.ts", import.meta.url).href)};
import { systemClock } from ${JSON.stringify(new URL("../../../protocol/index.ts", import.meta.url).href)};
const engine = createProcessEngine({ stateDir: ${JSON.stringify(stateDir)}, clock: systemClock });
await engine.start(${JSON.stringify(spec("once", "echo once >> effect; sleep 30"))});
engine.close();`,
  );
  const codes = await Promise.all(
    [1, 2, 3].map(
      () => new Promise((resolve) => spawn(process.execPath, [driver], { stdio: "inherit" }).once("exit", resolve)),
    ),
  );
  t.same(codes, [0, 0, 0]);
  await until("one host", () => hostsOf(stateDir).length === 1);
  t.same(lines(), ["once"]);
});

await t.test("a host that nobody needs ends itself; one with work or with an agent does not", async (t) => {
  const { stateDir, engine, spec, work } = scene(t);
  const host = join(stateDir, "host");
  const fast = join(stateDir, "fast-host.ts");
  const soon = join(stateDir, "soon");
  // The host's own ten minutes, a thousand times as fast once an agent has found it.
  writeFileSync(
    fast,
    `import { startHostServer } from ${JSON.stringify(new URL("./host-server.ts", import.meta.url).href)};
import { existsSync, mkdirSync } from "node:fs";
mkdirSync(${JSON.stringify(host)}, { mode: 0o700 });
process.chdir(${JSON.stringify(host)});
const after = (delayMs, fn) => { const timer = setTimeout(fn, existsSync(${JSON.stringify(soon)}) ? delayMs / 1000 : delayMs); return { cancel: () => clearTimeout(timer) }; };
const server = startHostServer(${JSON.stringify(host)}, { now: () => Date.now(), monotonic: () => performance.now() * 1000, after });
await server.ended;
process.exit(7);`,
  );
  const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", fast], { stdio: "inherit" });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  await until("it listens", () => existsSync(join(host, "host.sock")));
  await engine.start(spec("s", "while [ ! -e go ]; do sleep 0.02; done"));
  t.equal(hostsOf(stateDir).length, 0, "the engine uses the host that is there");
  writeFileSync(soon, "");
  await wait(systemClock, 900);
  t.equal(child.exitCode, null, "an agent is connected and work runs");
  engine.close();
  await wait(systemClock, 900);
  t.equal(child.exitCode, null, "work runs");
  writeFileSync(join(work, "go"), "");
  t.equal(await ended, 7);
  t.notOk(existsSync(join(host, "host.sock")));
});

await t.test("work folders of an earlier boot, as this format was first written", async (t) => {
  const { engine, stateDir } = scene(t);
  cpSync(new URL("./fixtures/work-1", import.meta.url), join(stateDir, "host", "work"), { recursive: true });
  const status = async (step: string) => {
    const name = workName("cmd", step, 1);
    return (await engine.status(name)).state === "absent" ? await engine.status(name) : await engine.ended(name);
  };
  t.match(await status("ended"), { state: "exited", code: 3, signal: null, reason: "exit" });
  t.match(await status("crashed"), { state: "exited", code: null, signal: null, reason: "unknown" });
  t.match(await status("done"), { state: "exited", code: 0, endedAt: 1795255260000 });
  // Before a crash of the machine, the record of a beginning may not have reached the disk.
  t.match(await status("never"), { state: "exited", code: null, reason: "unknown" });
});
