// The main job over a NATS network: by TLS, by the server's WebSocket listener, through a leaf node; each agent with a
// NATS user that may speak of itself alone. Then the NATS server is killed in the middle of a download, and comes back.
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { connect } from "@nats-io/transport-node";
import t, { type Test } from "tap";
import type { Preview } from "@sallyport/protocol";
import type { RunDetail } from "../../cloud/http/api.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startNats } from "../support/nats.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud, type TestAgent } from "../support/stack.ts";

const SIZE = 64 * 2 ** 20;
const agentUser = (name: string) =>
  `{ user: ${name}, password: ${name}-secret, permissions: { publish: "sallyport.up.${name}.>", subscribe: "sallyport.down.${name}.>" } }`;
const AUTHORIZATION = `users: [
  { user: cloud, password: cloud-secret, permissions: { publish: "sallyport.down.>", subscribe: "sallyport.up.>" } }
  ${["edge-tls", "edge-wss", "edge-leaf"].map(agentUser).join("\n  ")}
]`;

t.test("the main job over NATS", { skip: needs("nats"), timeout: 280_000 }, async (t) => {
  const nats = await startNats(t, { tls: true, webSocket: true, leaf: true, authorization: AUTHORIZATION });
  const cloud = await TestCloud.start(t, {
    args: ["--nats-url", nats.url.replace("://", "://cloud:cloud-secret@"), "--nats-ca", nats.caFile!],
  });
  const store = tempDir(t, "store");
  mkdirSync(join(store, "code"));
  const content = randomBytes(SIZE);
  const digest = createHash("sha256").update(content).digest("hex");
  writeFileSync(join(store, "big.bin"), content);
  writeFileSync(join(store, "table.csv"), "id,name\n1,ada\n2,grace\n");
  writeFileSync(join(store, "code/step.mjs"), `console.log("hello from the step");\n`);

  const ways = { "edge-tls": nats.url, "edge-wss": nats.webSocketUrl!, "edge-leaf": nats.leafUrl! };
  const agents = new Map<string, TestAgent>();
  const files = (name: string) => `/v1/pools/${name}/stores/box`;
  /** Resolves with what came; `half` is called when half of it is here. */
  const download = async (name: string, half = async () => {}): Promise<string> => {
    const response = await fetch(`${cloud.url}${files(name)}/content?path=big.bin`, {
      headers: { authorization: `Bearer ${cloud.api.token}` },
    });
    const hash = createHash("sha256");
    let bytes = 0;
    let told = false;
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      hash.update(chunk);
      bytes += chunk.length;
      if (!told && bytes >= SIZE / 2) {
        told = true;
        await half();
      }
    }
    return bytes === SIZE ? hash.digest("hex") : `only ${bytes} bytes`;
  };

  const mainJob = async (t: Test, name: keyof typeof ways): Promise<void> => {
    const agent = await connectAgent(t, cloud, name, {
      env: { NATS_PASSWORD: `${name}-secret` },
      config: `
link:
  url: ${ways[name]}
  stableAfterMs: 0
  nats: { user: ${name}, password: "\${env:NATS_PASSWORD}", ca: ${nats.caFile} }
stores: [{ id: box, kind: fs, root: ${store} }]
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["artifact.*", "pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores: [{ store: box, read: ["**"], write: ["runs/**"] }]
  release: { metadata: true, previews: { rows: 10 }, logs: true, raw: true }
`,
    });
    agents.set(name, agent);
    const row = (await cloud.agents()).find(({ pool }) => pool.name === name)!;
    t.equal(row.remoteAddress, `nats:${name}`, "it came by its own name");
    const { preview } = await cloud.api.json<{ preview: Preview }>(`${files(name)}/preview?path=table.csv`);
    t.match(preview, { type: "table", totalRows: 2 });
    t.equal(await download(name), digest, "64 MiB have their digest");
    const { id } = await cloud.api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: name,
        pipeline: {
          name: "one",
          outputs: { store: "box" },
          steps: [
            {
              name: "one",
              program: "node",
              args: ["${inputs.code}"],
              inputs: { code: { store: "box", path: "code/step.mjs" } },
            },
          ],
        },
      },
    });
    const run = await waitFor("the run to end", async () => {
      const run = await cloud.api.json<RunDetail>(`/v1/runs/${id}`);
      return TERMINAL.includes(run.state) && run;
    });
    t.equal(run.state, "succeeded");
  };
  // All on `t`: the agents are to live on.
  t.comment("by TLS");
  await mainJob(t, "edge-tls");
  t.comment("by the WebSocket listener");
  await mainJob(t, "edge-wss");
  t.comment("through the leaf node");
  await mainJob(t, "edge-leaf");

  await t.test("an agent's NATS user may neither hear nor speak for another", async (t) => {
    const client = await connect({
      servers: nats.url,
      user: "edge-tls",
      pass: "edge-tls-secret",
      tls: { caFile: nats.caFile! },
      reconnect: false,
    });
    t.teardown(() => client.close());
    const errors: string[] = [];
    void (async () => {
      for await (const status of client.status()) if (status.type === "error") errors.push(status.error.message);
    })();
    for (const subject of ["sallyport.down.edge-wss.>", "sallyport.up.>", "sallyport.>", ">", "_INBOX.>"])
      client.subscribe(subject, { callback: () => {} });
    client.publish("sallyport.up.edge-wss.hello", "{}");
    client.publish(`sallyport.down.edge-wss.${"0".repeat(32)}`, "x");
    await client.flush();
    await waitFor("all seven to be refused", async () => errors.length >= 7);
    t.equal(errors.length, 7, errors.join("; "));
    t.ok(errors.every((message) => message.includes("Permissions Violation")));
  });

  await t.test("the NATS server is killed and comes back: so do the agents, and the download goes on", async (t) => {
    const pid = Number(readFileSync(join(nats.dir, "pid"), "utf8"));
    const got = await download("edge-tls", async () => {
      process.kill(pid, "SIGKILL");
      await nats.stop();
      await waitFor("the control plane to notice", async () =>
        (await cloud.agents()).every((a) => a.state !== "connected"),
      );
      await nats.resume();
    });
    t.equal(got, digest, "one answer, the right bytes");
    await waitFor("all agents to be back", async () => (await cloud.agents()).every((a) => a.state === "connected"), {
      timeoutMs: 60_000,
    });
    for (const [name, agent] of agents) {
      t.equal(agent.program.exit, undefined, `${name} was never restarted`);
      t.equal(agent.programs.length, 1);
      t.equal(await download(name), digest, `${name} works as before`);
    }
  });

  for (const program of [cloud.program, ...[...agents.values()].map((agent) => agent.program)])
    for (const name of ["cloud", ...Object.keys(ways)])
      t.notOk(program.tail(100_000).includes(`${name}-secret`), `no password of ${name} is printed`);
});
