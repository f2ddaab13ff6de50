// The agent's dial is refused for a while: by a control plane that is broken, that knows it no more, that does not let it in.
// Intake pauses. What runs is never touched, and is there when it is let in again.
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import t from "tap";
import type { RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, TestCloud } from "../support/stack.ts";

const ANSWERS = [503, 500, 404, 401];

t.setTimeout(260_000);

t.test("401, 404 and 5xx at the dial", { timeout: 240_000 }, async (t) => {
  const cloud = await TestCloud.start(t);
  const effects = join(tempDir(t, "effects"), "effects");
  const gate = `${effects}.gate`;
  const agent = await connectAgent(t, cloud, "lab", {
    config: `
stores: [{ id: box, kind: fs, root: ${tempDir(t, "store")} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
`,
  });
  const script = `const fs = require("node:fs");
    const timer = setInterval(() => { fs.appendFileSync(${JSON.stringify(effects)}, "x"); if (fs.existsSync(${JSON.stringify(gate)})) clearInterval(timer); }, 100);`;
  const run = await cloud.api.json<{ id: string }>("/v1/runs", {
    headers: { "idempotency-key": randomUUID() },
    json: {
      pool: "lab",
      pipeline: { name: "p", outputs: { store: "box" }, steps: [{ name: "a", program: "node", args: ["-e", script] }] },
    },
  });
  const beats = () => (existsSync(effects) ? readFileSync(effects).length : 0);
  await waitFor("the step to run", () => beats() > 0);

  await cloud.program.killHard();
  const served: number[] = [];
  const stranger = createServer((_request, response) => {
    const status = ANSWERS[served.length % ANSWERS.length]!;
    served.push(status);
    response.writeHead(status, { "content-type": "text/plain" }).end("no");
  });
  await new Promise<void>((resolve) => stranger.listen(cloud.port, "127.0.0.1", resolve));
  await waitFor("each of the answers", () => served.length >= ANSWERS.length, { timeoutMs: 120_000 });
  const before = beats();
  await waitFor("the step to go on after all of them", () => beats() > before + 5);
  t.equal(agent.program.exit, undefined, "the agent is there");
  stranger.closeAllConnections();
  await new Promise((resolve) => stranger.close(resolve));
  await cloud.start();
  writeFileSync(gate, "");
  const end = await waitFor(
    "the run to end",
    async () => {
      const now = await cloud.api.json<RunDetail>(`/v1/runs/${run.id}`);
      return ["succeeded", "failed", "cancelled"].includes(now.state) && now;
    },
    { timeoutMs: 100_000 },
  );
  t.match(end, { state: "succeeded", attempts: [{ attempt: 1, state: "succeeded" }] });
});
