import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import { appendFileSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import type { AddressInfo, Socket } from "node:net";
import { join } from "node:path";
import {
  CloudHandshake,
  commandAnswerSchema,
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  formatEnrolmentSecret,
  keyFingerprint,
  keySigner,
  Mux,
  ndjsonLine,
  newCommandId,
  newEnrolmentSecretBytes,
  newId,
  readJsonBody,
  readNdjson,
  reportSchema,
  systemClock,
  webSocketTransport,
  type AgentStatus,
  type LinkStream,
  type PipelineInput,
  type ReportBody,
} from "@sallyport/protocol";
import t from "tap";
import { WebSocketServer, type WebSocket } from "ws";
import { binFile, runProgram, startProgram, tempDir, waitFor, type Teardown } from "../test/support/launcher.ts";
import type { PsAnswer } from "./control/index.ts";
import { commandKey, offer, pool, replica, signer, workspace, type OfferChanges } from "./commands/test-link.ts";

/** A control plane of a few lines at the far end of a real socket. */
class FakeCloud {
  readonly #server = new WebSocketServer({ host: "127.0.0.1", port: 0, path: "/link", perMessageDeflate: false });
  readonly #identity = generateKeyPairSync("ed25519");
  readonly incarnation = "inc-1";
  readonly secret: string;
  readonly secretBytes = newEnrolmentSecretBytes();
  mux: Mux | null = null;
  session = newId("session");
  epoch = 0;
  sessions = 0;
  status: AgentStatus | null = null;
  readonly ends: string[] = [];
  /** False: reports are taken and not acknowledged. */
  acknowledging = true;
  readonly reports = new Map<number, { command: string; body: ReportBody }>();

  constructor() {
    this.secret = formatEnrolmentSecret({
      id: newId("enrollment"),
      secret: this.secretBytes,
      identityFingerprint: keyFingerprint(this.#identity.publicKey),
      caFingerprint: null,
    });
    this.#server.on("connection", (webSocket, request) => this.#greet(webSocket, request.socket));
  }

  async listening(): Promise<void> {
    await once(this.#server, "listening");
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  #greet(webSocket: WebSocket, socket: Socket): void {
    const transport = webSocketTransport(webSocket, socket);
    const limits = { windows: DEFAULT_WINDOWS, maxStreams: DEFAULT_MAX_STREAMS, mac: true };
    const session = newId("session");
    const handshake = new CloudHandshake({
      ...limits,
      identity: keySigner("identity-1", this.#identity.privateKey),
      identityPublicKey: this.#identity.publicKey,
      session,
      incarnation: this.incarnation,
      nowMs: Date.now(),
      commandKeys: new Map([[signer.kid, commandKey]]),
      peerOnLoopback: true,
    });
    let challenged = false;
    transport.onMessage((message) => {
      if (!challenged) {
        challenged = true;
        return transport.send(handshake.onHello(message));
      }
      transport.onMessage(null);
      handshake.onProof(message);
      const ready = handshake.ready({
        session,
        epoch: ++this.epoch,
        replica,
        workspace,
        pool,
        names: { replica: "r1", pool: "p1", workspace: "w1" },
      });
      transport.send(ready.send);
      this.session = session;
      this.sessions++;
      const mux = new Mux({
        ...ready.agreed,
        id: session,
        transport,
        clock: systemClock,
        side: "cloud",
        windows: DEFAULT_WINDOWS,
        maxStreams: DEFAULT_MAX_STREAMS,
        peerBackground: true,
        onStream: (stream) => void this.#take(stream).catch(() => undefined),
        onGoAway: (reason) => this.ends.push(`goodbye ${reason.code}`),
      });
      this.mux = mux;
      void mux.closed.then(() => {
        if (this.mux === mux) this.mux = null;
      });
    });
  }

  async #take(stream: LinkStream): Promise<void> {
    const { type } = stream.head as { type: string };
    stream.respond({ type });
    for await (const line of readNdjson(stream.bytes)) {
      if (type === "status") this.status = line as AgentStatus;
      else {
        const report = reportSchema.parse(line);
        this.reports.set(report.sequence, {
          command: report.command,
          body: readJsonBody(report.body) as ReportBody,
        });
        if (this.acknowledging) await stream.write(ndjsonLine({ committedThrough: report.sequence }));
      }
    }
  }

  async ask(kind: string, input: unknown, changes: OfferChanges = {}): Promise<unknown> {
    const head = offer({ id: this.session, epoch: this.epoch, incarnation: this.incarnation }, kind, input, changes);
    const stream = this.mux!.open(head, { lane: "interactive", end: true });
    const answer = commandAnswerSchema.parse(await stream.answer);
    return answer.type === "result" ? readJsonBody(answer.body) : answer;
  }

  of(command: string): ReportBody[] {
    return [...this.reports]
      .sort(([a], [b]) => a - b)
      .map(([, report]) => report)
      .filter((report) => report.command === command)
      .map((report) => report.body);
  }

  async close(): Promise<void> {
    if (this.#server.address() === null) return;
    for (const client of this.#server.clients) client.terminate();
    this.#server.close();
    await once(this.#server, "close");
  }
}

const SECRET = "correct-horse-battery-staple";

interface Rig {
  cloud: FakeCloud;
  state: string;
  configFile: string;
  write(policy: { commands: string; concurrentRuns?: number }): void;
  cli(...args: string[]): ReturnType<typeof runProgram>;
  start(env?: Record<string, string>, nodeArgs?: string[]): ReturnType<typeof startProgram>;
}

async function rig(t: Teardown, stateFolder = "state"): Promise<Rig> {
  const dir = tempDir(t, "agent");
  const cloud = new FakeCloud();
  await cloud.listening();
  t.teardown(() => cloud.close());
  const state = join(dir, stateFolder);
  const configFile = join(dir, "agent.yaml");
  const store = join(dir, "store");
  mkdirSync(store);
  writeFileSync(join(store, "a.txt"), "hello");
  const write = ({ commands, concurrentRuns = 2 }: { commands: string; concurrentRuns?: number }) =>
    writeFileSync(
      configFile,
      `cloud: { url: ${cloud.url} }
state: ${state}
labels: { site: "${SECRET}" }
secrets: { named: { one: "\${env:ONE}" } }
stores:
  - { id: lake, kind: fs, root: ${store} }
programs:
  sleep: { path: /bin/sleep }
policy:
  commands: ${commands}
  engines: [process]
  programs: [sleep]
  stores:
    - { store: lake, read: ["**"], write: ["**"] }
  release: { metadata: true, logs: true }
  ceilings: { concurrentRuns: ${concurrentRuns}, concurrentSteps: 2, stepTimeoutMs: 600000, stepsPerRun: 10, streams: 10 }
`,
    );
  write({ commands: '["artifact.*", "pipeline.run", "run.*"]' });
  const cli = (...args: string[]) =>
    runProgram(t, {
      name: `agent ${args[0]}`,
      args: [binFile("agent/bin/sallyport-agent"), ...args, "--config", configFile],
    });
  t.teardown(() => cli("stop", "--all"));
  return {
    cloud,
    state,
    configFile,
    write,
    cli,
    start: (env = {}, nodeArgs = []) =>
      startProgram(t, {
        name: "agent",
        args: [...nodeArgs, binFile("agent/bin/sallyport-agent"), "run", "--config", configFile],
        env: { ONE: SECRET, ...env },
      }),
  };
}

const pipeline = (seconds: number): PipelineInput => ({
  name: "sleepy",
  outputs: { store: "lake" },
  steps: [{ name: "nap", program: "sleep", args: [String(seconds)], timeoutMs: 600_000 }],
});

t.test("the program's life: enrols, serves, pauses, is stopped and started, is killed and adopts", async (t) => {
  const { cloud, state, cli, start, write, configFile } = await rig(t);

  const bare = await cli("run");
  t.equal(bare.code, 2);
  t.match(bare.stderr, /has not joined a control plane yet.*\n.*SALLYPORT_ENROLL_SECRET/s);
  const nobody = await cli("ps");
  t.equal(nobody.code, 1);
  t.match(nobody.stderr, `No agent runs in the state directory ${state}`);

  let agent = start({ SALLYPORT_ENROLL_SECRET: cloud.secret });
  await waitFor("the status", () => cloud.status);
  t.match(cloud.status, {
    paused: null,
    draining: false,
    stores: [{ id: "lake", kind: "fs", label: "file", grants: ["read", "write"] }],
    programs: ["sleep"],
    engines: ["process"],
    limits: { runs: 2, steps: 2 },
    commands: ["artifact.delete", "artifact.list"],
  });
  t.equal(statSync(state).mode & 0o777, 0o700);
  t.equal(statSync(join(state, "agent.sock")).mode & 0o777, 0o600);
  t.match(await cloud.ask("artifact.list", { store: "lake", path: "" }), {
    entries: [{ name: "a.txt", kind: "file" }],
  });
  t.equal((await cli("ready")).code, 0);
  const second = await cli("run");
  t.equal(second.code, 2);
  t.match(second.stderr, `process ${agent.pid}) uses the state directory`);

  t.equal((await cli("pause", "--reason", "moving house")).code, 0);
  await t.rejects(cloud.ask("artifact.list", { store: "lake", path: "" }), {
    code: "AGENT_PAUSED",
    message: /moving house/,
  });
  await waitFor("the pause in the status", () => cloud.status?.paused?.reason === "moving house");
  const exit = await agent.stop();
  t.equal(exit.code, 0);
  await waitFor("its goodbye to be read", () => cloud.ends.length > 0);
  t.same(cloud.ends, ["goodbye GOING_AWAY"]);
  t.notMatch(agent.output.toString(), SECRET);
  t.notMatch(agent.output.toString(), cloud.secret.split(".")[1]!);

  cloud.status = null;
  agent = start();
  await waitFor("the agent to be back", () => cloud.status);
  t.match(cloud.status, { paused: { reason: "moving house" } }, "a pause holds over a restart");
  t.match((await cli("ps")).stdout, /intake +paused: moving house/);
  t.equal((await cli("resume")).stdout, "Resumed.\n");

  const run = newId("run");
  const command = newCommandId();
  const changes = { intent: { command, resource: `run:${run}` } };
  t.same(await cloud.ask("pipeline.run", { run, pipeline: pipeline(300) }, changes), {
    type: "accepted",
    known: false,
  });
  const shown = await waitFor("the step in ps", async () => {
    const { stdout } = await cli("ps", "--output", "json");
    const answer = JSON.parse(stdout) as { commands: { steps: { name: string; pid: number }[] }[] };
    return answer.commands[0]?.steps[0];
  });
  t.equal(shown.name, `${run}/nap`);
  await agent.killHard();
  t.ok(existsSync(`/proc/${shown.pid}`), "the step outlives the agent");

  cloud.status = null;
  agent = start();
  await waitFor("the agent to be back", () => cloud.status);
  await waitFor("the step to be adopted", () =>
    cloud.of(command).some((body) => body.type === "step" && body.state === "running" && body.adopted),
  );
  t.ok(existsSync(`/proc/${shown.pid}`));
  t.match((await cli("ps")).stdout, new RegExp(`${run} +pipeline.run +running`));
  t.equal((await cli("stop", "nothing-of-that-name")).code, 1);
  const stopped = await cli("stop", run);
  t.equal(stopped.code, 0);
  t.match(stopped.stdout, run);
  await waitFor("the cancelled run", () => cloud.of(command).some((body) => body.type === "command.cancelled"));
  t.notOk(existsSync(`/proc/${shown.pid}`), "the step is gone");
  t.equal(
    cloud.of(command).filter((body) => body.type.startsWith("command.") && body.type !== "command.running").length,
    1,
  );

  write({ commands: "[" });
  agent.kill("SIGHUP");
  await agent.waitForOutput(/was not reloaded, the old one stays/);
  t.match(await cloud.ask("artifact.list", { store: "lake", path: "" }), { entries: [{ name: "a.txt" }] });
  const digest = cloud.status!.policyDigest;
  write({ commands: '["run.*"]' });
  agent.kill("SIGHUP");
  await waitFor("the new policy", () => cloud.status!.policyDigest !== digest);
  await t.rejects(cloud.ask("artifact.list", { store: "lake", path: "" }), {
    code: "POLICY_DENIED",
    details: { rule: "policy.commands (default)" },
  });

  t.equal((await agent.stop()).code, 0);
  const verified = await cli("audit", "verify");
  t.equal(verified.code, 0, verified.stdout);
  const log = join(state, "audit/audit.ndjson");
  const lines = readFileSync(log, "utf8");
  t.match(
    lines,
    `"command":"${command}","kind":"pipeline.run","resource":"run:${run}","verdict":"allowed","rule":"policy.commands[1]"`,
  );
  t.notMatch(lines, "hello");
  writeFileSync(log, lines.replace('"verdict":"denied"', '"verdict":"allowed"'));
  const tampered = await cli("audit", "verify");
  t.equal(tampered.code, 1);
  t.match(tampered.stdout, /NOT whole: audit.ndjson, line \d+ \(record \d+\)/);
  t.ok(existsSync(configFile));
});

/** Offers a run of one step that sleeps for so long. Answers with both ids when it is accepted. */
async function startRun(t: { same(found: unknown, wanted: unknown): unknown }, cloud: FakeCloud, seconds = 300) {
  const run = newId("run");
  const command = newCommandId();
  const changes = { intent: { command, resource: `run:${run}` } };
  const answer = await cloud.ask("pipeline.run", { run, pipeline: pipeline(seconds) }, changes);
  t.same(answer, { type: "accepted", known: false });
  return { run, command };
}

async function ps(cli: Rig["cli"]): Promise<PsAnswer> {
  return JSON.parse((await cli("ps", "--output", "json")).stdout) as PsAnswer;
}

t.test("a ceiling tightened to 0: what was accepted waits, is said so, and begins when it is raised", async (t) => {
  const { cloud, cli, start, write } = await rig(t);
  const commands = '["pipeline.run", "run.*"]';
  write({ commands, concurrentRuns: 1 });
  const agent = start({ SALLYPORT_ENROLL_SECRET: cloud.secret });
  await waitFor("the status", () => cloud.status);
  const first = await startRun(t, cloud);
  const second = await startRun(t, cloud);
  await waitFor("the first to run", () => cloud.of(first.command).some((body) => body.type === "command.running"));
  const before = await ps(cli);
  t.equal(before.heldBack, null, "whoever has a turn to come is not held back");
  t.same(
    before.commands.map(({ run, state }) => [run, state]),
    [
      [first.run, "running"],
      [second.run, "waiting"],
    ],
  );

  write({ commands, concurrentRuns: 0 });
  agent.kill("SIGHUP");
  await agent.waitForOutput(/none of them begins: .*concurrentRuns of at most 0/);
  t.equal((await cli("stop", first.run)).code, 0);
  await waitFor("the first to end", () => cloud.of(first.command).some((body) => body.type === "command.cancelled"));
  t.match((await ps(cli)).heldBack, { waiting: 1, fix: /policy: { ceilings: { concurrentRuns: 2 } }/ });
  t.match((await cli("ps")).stdout, /^waiting +1 accepted, none begins: .*concurrentRuns.*\n +Whoever runs the agent/m);
  t.equal(agent.output.toString().split("none of them begins").length - 1, 1, "the log says it once");
  t.same(cloud.of(second.command), []);

  write({ commands, concurrentRuns: 1 });
  agent.kill("SIGHUP");
  await waitFor("the second to run", () => cloud.of(second.command).some((body) => body.type === "command.running"));
  t.equal((await ps(cli)).heldBack, null);
  t.equal((await agent.stop()).code, 0);
});

t.test("a second signal ends the agent at once, and what runs goes on", async (t) => {
  const { cloud, cli, start } = await rig(t);
  let agent = start({ SALLYPORT_ENROLL_SECRET: cloud.secret });
  await waitFor("the status", () => cloud.status);
  // It would wait for the acknowledgement of these.
  cloud.acknowledging = false;
  const { command } = await startRun(t, cloud);
  const step = await waitFor("the step in ps", async () => (await ps(cli)).commands[0]?.steps[0]);
  agent.kill("SIGTERM");
  await agent.waitForOutput(/stopping: no new commands/);
  agent.kill("SIGINT");
  t.equal((await agent.exited).code, 1);
  const said = agent.output.toString();
  t.match(said, /stopping at once/);
  t.notMatch(said, /not acknowledged in time|"stopped"/, "it waited for nothing");
  t.same(cloud.ends, [], "no goodbye was said");
  t.ok(existsSync(`/proc/${step.pid}`), "the step outlives the agent");

  cloud.acknowledging = true;
  agent = start();
  await waitFor("the step to be adopted", () =>
    cloud.of(command).some((body) => body.type === "step" && body.state === "running" && body.adopted),
  );
  t.ok(existsSync(`/proc/${step.pid}`));
  t.equal((await agent.stop()).code, 0);
  t.equal((await cli("audit", "verify")).code, 0, "the audit was closed whole");
});

t.test("without the control plane: it starts, answers at its host, and stops", async (t) => {
  // Longer than the address of a socket can be.
  const { cloud, cli, start, state } = await rig(t, "a-folder-with-a-long-name/".repeat(6) + "state");
  t.ok(join(state, "agent.sock").length > 108);
  const loaded = join(tempDir(t), "loaded");
  const hooks = join(tempDir(t), "hooks.mjs");
  writeFileSync(
    hooks,
    `import { registerHooks } from "node:module"; import { appendFileSync } from "node:fs";
registerHooks({ load(url, context, next) { appendFileSync(${JSON.stringify(loaded)}, url + "\\n"); return next(url, context); } });`,
  );
  appendFileSync(loaded, "");
  let agent = start({ SALLYPORT_ENROLL_SECRET: cloud.secret }, ["--import", hooks]);
  await waitFor("the agent to enrol", () => cloud.status);
  const modules = readFileSync(loaded, "utf8");
  t.match(modules, "/agent/commands/runner");
  for (const connector of ["@aws-sdk", "node-vault", "@smithy"])
    t.notMatch(modules, connector, `${connector} is not loaded by a bare agent`);
  t.equal((await agent.stop()).code, 0);
  await cloud.close();

  agent = start();
  await agent.waitForOutput(/no link/);
  const ready = await cli("ready");
  t.equal(ready.code, 1);
  t.match(ready.stdout, /The link is/);
  t.match((await cli("ps")).stdout, /Nothing runs/);
  t.equal((await cli("pause", "--until", "1h")).code, 0);
  t.equal((await cli("stop", "--all")).code, 0);
  t.equal((await cli("pause", "--until", "yesterday")).code, 2);
  agent.kill("SIGTERM");
  t.equal((await agent.exited).code, 0);

  agent = start({ SALLYPORT_ENROLL_SECRET: "not a secret" });
  await agent.waitForOutput(/no link/);
  t.pass("an agent that has its identity needs no secret, also not a right one");
  agent.kill("SIGTERM");
  t.equal((await agent.exited).code, 0);
});
