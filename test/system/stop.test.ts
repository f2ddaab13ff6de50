// SIGTERM of either program while a reader that does not read holds a download and a run is under way: both end in time
// and by themselves, the run goes on without them and ends once. And refusals of any length leave the link alone.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import t from "tap";
import type { RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor, type Program } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud } from "../support/stack.ts";

const STEP = `import { appendFileSync, existsSync, writeFileSync } from "node:fs";
const [effects, out] = process.argv.slice(2);
appendFileSync(effects, "began\\n");
const timer = setInterval(() => {
  if (!existsSync(effects + ".gate")) return;
  clearInterval(timer);
  writeFileSync(out, "done");
}, 20);
`;
/** The agent's own limit is 10 s, the control plane's `--drain-ms`. */
const STOP_MS = 14_000;

t.test("both programs stop in time", { timeout: 240_000 }, async (t) => {
  const cloud = await TestCloud.start(t, { args: ["--drain-ms", "3000"] });
  const store = tempDir(t, "store");
  const effects = join(tempDir(t, "effects"), "effects");
  writeFileSync(join(store, "step.mjs"), STEP);
  writeFileSync(join(store, "big.bin"), "");
  truncateSync(join(store, "big.bin"), 256 * 1024 * 1024);
  const agent = await connectAgent(t, cloud, "lab", {
    config: `
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["pipeline.run", "run.*", "artifact.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["*"], write: ["runs/**"] }]
  release: { metadata: true, logs: true, raw: true }
`,
  });
  const before = (await cloud.agent()).connectedAt;
  const quotes = Array.from({ length: 4 }, () => '"'.repeat(255)).join("/");
  for (const path of [quotes, "日".repeat(80) + "/x", `private/${"x".repeat(250)}`]) {
    const answer = await cloud.api.call(`/v1/pools/lab/stores/box/content?path=${encodeURIComponent(path)}`);
    t.equal(answer.status, 403, `refused: ${answer.body.toString().slice(0, 60)}`);
  }
  t.equal((await cloud.agent()).connectedAt, before, "the link went through all of them");

  const run = await cloud.api.json<{ id: string }>("/v1/runs", {
    headers: { "idempotency-key": randomUUID() },
    json: {
      pool: "lab",
      pipeline: {
        name: "slow",
        outputs: { store: "box" },
        steps: [
          {
            name: "one",
            program: "node",
            args: ["${inputs.code}", effects, "${outputs.out}"],
            inputs: { code: { store: "box", path: "step.mjs" } },
            outputs: { out: {} },
          },
        ],
      },
    },
  });
  await waitFor("the step to begin", () => existsSync(effects));
  const stalled = async (): Promise<Socket> => {
    const socket = connect({ port: cloud.port, host: "127.0.0.1" });
    t.teardown(() => socket.destroy());
    socket.on("error", () => {});
    socket.write(
      `GET /v1/pools/lab/stores/box/content?path=big.bin HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${cloud.api.token}\r\n\r\n`,
    );
    await new Promise((resolve) => socket.once("data", resolve));
    socket.pause();
    return socket;
  };
  const stopped = async (program: Program): Promise<number> => {
    const from = performance.now();
    const exit = await program.stop({ graceMs: 60_000 });
    t.equal(exit.code, 0, `${program.name} ended as asked`);
    return performance.now() - from;
  };

  await stalled();
  const agentMs = await stopped(agent.program);
  t.ok(agentMs < STOP_MS, `the agent in ${Math.round(agentMs)} ms`);
  agent.start();
  await cloud.connected();
  await stalled();
  const cloudMs = await stopped(cloud.program);
  t.ok(cloudMs < STOP_MS, `the control plane in ${Math.round(cloudMs)} ms`);
  await cloud.start();
  writeFileSync(`${effects}.gate`, "");
  const ended = await waitFor(
    "the run to end",
    async () => {
      const found = await cloud.api.json<RunDetail>(`/v1/runs/${run.id}`);
      return TERMINAL.includes(found.state) && found;
    },
    { timeoutMs: 90_000 },
  );
  t.equal(ended.state, "succeeded");
  t.equal(readFileSync(effects, "utf8"), "began\n", "once");
});
