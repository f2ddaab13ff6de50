// kill -9 of the agent or of the control plane in the middle of a run: it ends once, its log is whole. The effect is
// counted where it happens (a file that the step appends to), never by our own record.
import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { readNdjson, type LogRecord } from "@sallyport/protocol";
import type { RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud } from "../support/stack.ts";

const LINES = 60;
const STEP = `import { appendFileSync, existsSync, writeFileSync } from "node:fs";
const [target, out, gate] = process.argv.slice(2);
appendFileSync(target, "began " + process.pid + "\\n");
let n = 0;
// goes on at its own pace, and does not end before the gate file is there
const timer = setInterval(() => {
  if (n < ${LINES}) console.log("line " + ++n);
  else if (existsSync(gate)) {
    clearInterval(timer);
    writeFileSync(out, "done");
  }
}, 20);
`;

for (const victim of ["agent", "cloud", "both"] as const) {
  t.test(`kill -9 of ${victim} during a run`, { timeout: 180_000 }, async (t) => {
    const cloud = await TestCloud.start(t);
    const store = tempDir(t, "store");
    const effects = join(tempDir(t, "effects"), "effects.txt");
    const gate = `${effects}.gate`;
    mkdirSync(join(store, "code"));
    writeFileSync(join(store, "code/step.mjs"), STEP);
    const agent = await connectAgent(t, cloud, "lab", {
      config: `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, logs: true }
`,
    });
    const step = (name: string, needs: string[]) => ({
      name,
      needs,
      program: "node",
      args: ["${inputs.code}", effects, "${outputs.out}", gate],
      inputs: { code: { store: "box", path: "code/step.mjs" } },
      outputs: { out: {} },
    });
    const run = await cloud.api.json<{ id: string; command: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "lab",
        pipeline: { name: "slow", outputs: { store: "box" }, steps: [step("one", []), step("two", ["one"])] },
      },
    });
    await waitFor(
      "the first step to be running",
      () => existsSync(effects) && readFileSync(effects, "utf8").includes("began"),
    );

    if (victim !== "cloud") await agent.program.killHard();
    if (victim !== "agent") await cloud.program.killHard();
    if (victim === "agent") {
      const silent = await waitFor("the run to be unknown", async () => {
        const now = await cloud.api.json<RunDetail>(`/v1/runs/${run.id}`);
        return now.state === "unknown" && now;
      });
      t.equal(silent.state, "unknown", "never failed: nobody knows yet");
    }
    writeFileSync(gate, ""); // the step may end while the victim is dead
    if (victim !== "agent") await cloud.start();
    if (victim !== "cloud") agent.start();

    const ended = await waitFor(
      "the run to end",
      async () => {
        const now = await cloud.api.json<RunDetail>(`/v1/runs/${run.id}`);
        return TERMINAL.includes(now.state) && now;
      },
      { timeoutMs: 60_000 },
    );
    t.equal(ended.state, "succeeded", ended.error?.message ?? "");
    t.equal(readFileSync(effects, "utf8").trim().split("\n").length, 2, "each step began once");
    t.same(
      ended.attempts.map((attempt) => [attempt.step, attempt.attempt, attempt.state]),
      [
        ["one", 1, "succeeded"],
        ["two", 1, "succeeded"],
      ],
    );
    for (const name of ["one", "two"]) {
      const records: LogRecord[] = [];
      for await (const record of readNdjson(await cloud.api.open(`/v1/runs/${run.id}/steps/${name}/logs?limit=10000`)))
        records.push(record as LogRecord);
      const lines = records.flatMap((record) =>
        "gap" in record ? ["GAP"] : record.stream === "stdout" ? [record.body.data.trimEnd()] : [],
      );
      t.same(
        lines,
        Array.from({ length: LINES }, (_, n) => `line ${n + 1}`),
        `every line of ${name} is there once, in order`,
      );
    }
  });
}
