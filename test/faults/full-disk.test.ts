// A disk that fills up, under the agent's state and under the control plane's data: new work is refused or waits with the
// reason, what runs goes on, and everything goes on by itself once there is room. Effects are counted where they happen.
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { Command, RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud, type TestAgent } from "../support/stack.ts";

const MIB = 1024 * 1024;
const STEP = `import { appendFileSync, existsSync, writeFileSync } from "node:fs";
const [target, out, gate] = process.argv.slice(2);
writeFileSync(out, "done");
appendFileSync(target, process.pid + "\\n");
const timer = setInterval(() => {
  if (existsSync(gate)) clearInterval(timer);
}, 20);
`;

/** A folder on a disk of its own of so many bytes. */
function smallDisk(t: Test, bytes: number): { folder: string; fill(): void; free(): void } {
  const disk = tempDir(t, "disk");
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${bytes},mode=0700`, "tmpfs", disk]);
  t.teardown(() => execFileSync("umount", ["--lazy", disk]));
  const filler = join(disk, "filler");
  return {
    folder: join(disk, "state"),
    fill() {
      const file = openSync(filler, "w");
      try {
        for (let chunk = Buffer.alloc(MIB); ;) {
          try {
            writeSync(file, chunk);
          } catch (error) {
            if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
            if (chunk.length <= 512) break;
            chunk = Buffer.alloc(chunk.length / 2);
          }
        }
      } finally {
        closeSync(file);
      }
    },
    free: () => rmSync(filler),
  };
}

const mounts = ((): string | false => {
  if (process.getuid?.() === 0) return false;
  const reason = "needs root, to mount a small disk";
  if (process.env["CI"]) throw new Error(reason);
  return reason;
})();

async function lab(t: Test, cloud: TestCloud, state?: string) {
  const store = tempDir(t, "store");
  mkdirSync(join(store, "code"));
  writeFileSync(join(store, "code/step.mjs"), STEP);
  const effects = tempDir(t, "effects");
  const agent: TestAgent = await connectAgent(t, cloud, "lab", {
    ...(state === undefined ? {} : { state }),
    config: `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["pipeline.run", "run.*", "artifact.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`,
  });
  const submit = async (name: string) => {
    const target = join(effects, name);
    const answer = await cloud.api.call("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "lab",
        pipeline: {
          name,
          outputs: { store: "box" },
          steps: [
            {
              name: "one",
              program: "node",
              args: ["${inputs.code}", target, "${outputs.out}", `${target}.gate`],
              inputs: { code: { store: "box", path: "code/step.mjs" } },
              outputs: { out: {} },
            },
          ],
        },
      },
    });
    return { answer, target };
  };
  const open = async (name: string) => {
    const { answer, target } = await submit(name);
    if (answer.status >= 300) throw new Error(answer.body.toString());
    const made = JSON.parse(answer.body.toString()) as { id: string; command: string };
    return {
      ...made,
      began: () => waitFor(`${name} to begin`, () => existsSync(target)),
      mayEnd: () => writeFileSync(`${target}.gate`, ""),
      /** Its program is no more, whoever knows of it. */
      over: () => waitFor(`${name} to be over`, () => !existsSync(`/proc/${readFileSync(target, "utf8").trim()}`)),
      ended: () =>
        waitFor(
          `${name} to end`,
          async () => {
            const now = await cloud.api.json<RunDetail>(`/v1/runs/${made.id}`);
            return TERMINAL.includes(now.state) && now;
          },
          { timeoutMs: 90_000 },
        ),
      effects: () => readFileSync(target, "utf8").trim().split("\n").length,
      waiting: async () => (await cloud.api.json<Command>(`/v1/commands/${made.command}`)).waiting,
    };
  };
  return { agent, submit, open };
}

t.test(
  "the agent's disk is full: it takes nothing new and says why, what runs ends well, and it goes on alone",
  { skip: mounts, timeout: 180_000 },
  async (t) => {
    const disk = smallDisk(t, 24 * MIB);
    const cloud = await TestCloud.start(t);
    const { agent, open } = await lab(t, cloud, disk.folder);
    const running = await open("running");
    await running.began();

    disk.fill();
    const later = await open("later");
    const reason = await waitFor(
      "the reason of the wait",
      async () => {
        const now = await later.waiting();
        return now !== null && now.code === "AGENT_UNREADY" && now;
      },
      { timeoutMs: 40_000 },
    );
    t.match(reason.text, /journal|audit/, `it names what cannot be written: ${reason.text}`);
    t.match(reason.fix, /room|space|disk/, reason.fix);
    running.mayEnd();
    // The step is over, which nobody can write down yet.
    await running.over();
    t.equal(agent.program.exit, undefined, "the agent lives");

    disk.free();
    later.mayEnd();
    const [first, second] = [await running.ended(), await later.ended()];
    t.equal(first.state, "succeeded", first.error?.message ?? "what ran ended well");
    t.equal(second.state, "succeeded", second.error?.message ?? "what waited went by itself");
    t.same([running.effects(), later.effects()], [1, 1], "each had its effect once");
    t.equal(agent.programs.length, 1, "without a restart");
  },
);

t.test(
  "the control plane's disk is full: it promises nothing new, loses nothing, and goes on alone",
  { skip: mounts, timeout: 180_000 },
  async (t) => {
    const disk = smallDisk(t, 24 * MIB);
    const cloud = await TestCloud.start(t, { dir: disk.folder });
    const { open, submit } = await lab(t, cloud);
    const running = await open("running");
    await running.began();

    disk.fill();
    const refused = await waitFor("a refusal", async () => {
      const { answer } = await submit("refused");
      return answer.status === 507 && answer;
    });
    t.match(
      JSON.parse(refused.body.toString()),
      { code: "STORAGE_FULL", fix: /.+/ },
      "a problem with its code and what to do",
    );
    running.mayEnd();
    await cloud.program.waitForOutput(/committing reports failed|STORAGE_FULL/);
    t.equal(cloud.program.exit, undefined, "it lives");

    disk.free();
    const ended = await running.ended();
    t.equal(ended.state, "succeeded", ended.error?.message ?? "the report came after all");
    t.equal(running.effects(), 1);
    const after = await open("after");
    after.mayEnd();
    t.equal((await after.ended()).state, "succeeded");
    t.equal(cloud.programs.length, 1, "without a restart");
  },
);
