// What can be seen from outside: figures of both sides, parsed strictly and bounded; one trace over both, told to a real
// collector; what became of each connection, after four kinds of ends.
import { randomBytes, randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import t, { type Test } from "tap";
import type { Connection, RunDetail } from "../../cloud/http/api.ts";
import { makeCanary, scanBytes } from "../support/canaries.ts";
import { startCollector, type CollectedSpan, type Collector } from "../support/collector.ts";
import { parseExposition, valueOf, type Family } from "../support/exposition.ts";
import { binFile, runProgram, tempDir, waitFor } from "../support/launcher.ts";
import { CEILINGS, connectAgent, freePort, TERMINAL, TestCloud, type TestAgent } from "../support/stack.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";

const POOL = "lab";
const files = `/v1/pools/${POOL}/stores/lake`;
const at = (path: string) => `path=${encodeURIComponent(path)}`;
const hex = (bytes: number) => randomBytes(bytes).toString("hex");

interface Got {
  status: number;
  type: string | undefined;
  text: string;
}
/** By the control socket, or by an address. */
const get = (where: { socketPath: string } | { port: number }, path: string, token?: string): Promise<Got> =>
  new Promise((resolve, reject) => {
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
    request({ host: "127.0.0.1", ...where, path, headers, agent: false }, (answer) => {
      const chunks: Buffer[] = [];
      answer.on("data", (chunk: Buffer) => chunks.push(chunk));
      answer.on("end", () =>
        resolve({
          status: answer.statusCode ?? 0,
          type: answer.headers["content-type"],
          text: Buffer.concat(chunks).toString(),
        }),
      );
    })
      .on("error", reject)
      .end();
  });

t.test("observability", { timeout: 240_000 }, async (t) => {
  const collector = await startCollector(t);
  const lake = tempDir(t, "lake");
  mkdirSync(join(lake, "code"));
  writeFileSync(join(lake, "code/step.mjs"), `console.log("done");\n`);
  writeFileSync(join(lake, "table.csv"), "id,name\n1,ada\n");
  const canary = makeCanary("metrics token");
  const token = canary.value;
  writeFileSync(join(lake, `${token}.csv`), "id\n1\n");

  const cloud = await TestCloud.start(t, { env: { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url } });
  const proxy = await startTcpProxy(t, { port: cloud.port });
  const listen = await freePort();
  const agent = await connectAgent(t, cloud, POOL, {
    url: `http://127.0.0.1:${proxy.port}`,
    env: { METRICS_TOKEN: token, OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/`, OTEL_SERVICE_NAME: "agent-lab" },
    config: `
metrics: { listen: "127.0.0.1:${listen}", token: "\${env:METRICS_TOKEN}" }
stores:
  - { id: lake, kind: fs, root: ${lake} }
programs:
  node: { path: ${process.execPath} }
policy:
  ${CEILINGS}
  commands: ["artifact.*", "pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores:
    - { store: lake, read: ["**"], write: ["**"] }
  release: { metadata: true, previews: { rows: 10 }, logs: true, raw: true }
`,
  });
  const socket = { socketPath: join(agent.state, "agent.sock") };
  /** Of our own figures, by side: every name that was served. */
  const served = new Set<string>();
  const scrape = async (): Promise<{ cloud: Map<string, Family>; agent: Map<string, Family> }> => {
    const found = {
      cloud: parseExposition((await cloud.api.call("/metrics")).body.toString()),
      agent: parseExposition((await get(socket, "/metrics")).text),
    };
    for (const side of Object.values(found))
      for (const name of side.keys()) if (name.startsWith("sallyport_")) served.add(name);
    return found;
  };
  const run = (headers: Record<string, string> = {}) =>
    cloud.api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID(), ...headers },
      json: {
        pool: POOL,
        pipeline: {
          name: "small",
          outputs: { store: "lake", prefix: "runs" },
          steps: [
            {
              name: "one",
              program: "node",
              args: ["${inputs.code}"],
              inputs: { code: { store: "lake", path: "code/step.mjs" } },
            },
          ],
        },
      },
    });
  const ended = (id: string) =>
    waitFor("the run to end", async () => {
      const now = await cloud.api.json<RunDetail>(`/v1/runs/${id}`);
      return TERMINAL.includes(now.state) && now;
    });

  await t.test("who may see what", async (t) => {
    for (const where of [socket, { port: listen }, { port: cloud.port }]) {
      t.match(await get(where, "/healthz"), { status: 200, text: "ok\n" });
      t.match(await get(where, "/readyz"), { status: 200, text: "ready\n" });
    }
    t.match(await get({ port: cloud.port }, "/metrics"), { status: 401 });
    t.match(await get({ port: listen }, "/metrics"), { status: 401, text: "unauthorized\n" });
    t.match(await get({ port: listen }, "/metrics", `${token}x`), { status: 401 });
    t.match(await get({ port: listen }, "/metrics", token), { status: 200, type: /^text\/plain; version=0\.0\.4/ });
    t.match(await get({ port: listen }, "/anything", token), { status: 404 });
    t.match(await get(socket, "/metrics"), { status: 200 });
    t.equal(await agent.cli(["ready"]).exited.then(({ code }) => code), 0, "the socket's own language is still spoken");
  });

  await t.test("one trace over both, for a preview and for a run", (t) =>
    traces(t, { cloud, agent, collector, secret: token, run, ended }),
  );

  await t.test("a collector that is away holds nothing up, and what it misses is counted", async (t) => {
    collector.refuseWith(400);
    const before = valueOf((await scrape()).cloud, "sallyport_cloud_spans_total", { outcome: "dropped" });
    t.match(await cloud.api.json(`${files}/stat?${at("table.csv")}`), { path: "table.csv" });
    await waitFor("spans to be counted as dropped", async () => {
      const now = await scrape();
      return (
        valueOf(now.cloud, "sallyport_cloud_spans_total", { outcome: "dropped" }) > before &&
        valueOf(now.agent, "sallyport_agent_spans_total", { outcome: "dropped" }) > 0
      );
    });
    collector.refuseWith(null);
  });

  await t.test("figures are strict, and as many after 500 different paths and runs as before", async (t) => {
    await cloud.api.problem(`${files}/stat?${at("not/there")}`);
    await ended((await run()).id);
    await waitFor(
      "a beat",
      async () => valueOf((await scrape()).agent, "sallyport_agent_link_round_trip_seconds") >= 0,
    );
    const seriesOf = (families: Map<string, Family>) => [...families.values()].flatMap((family) => family.series);
    const before = await scrape();
    const paths = Array.from({ length: 480 }, (_, n) => `away/${n}-${hex(4)}`);
    const next = paths[Symbol.iterator]();
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (const path of next) await cloud.api.problem(`${files}/stat?${at(path)}`);
      }),
    );
    const runs = await Promise.all(Array.from({ length: 20 }, () => run()));
    for (const { id } of runs) await ended(id);
    const after = await scrape();
    for (const side of ["cloud", "agent"] as const) {
      const grown = seriesOf(after[side]).length - seriesOf(before[side]).length;
      // A route or an outcome may have been met for the first time; nothing grows with what is asked for.
      t.ok(grown < 40, `${side}: ${grown} series more`);
      for (const { name, labels } of seriesOf(after[side]))
        for (const [label, value] of Object.entries(labels))
          if (/[0-9a-f]{12}|away|table\.csv|admin/.test(value)) t.fail(`${name} has ${label}="${value}"`);
    }
    const kind = "artifact.stat";
    t.equal(
      valueOf(after.agent, "sallyport_agent_commands_total", { kind, outcome: "ARTIFACT_NOT_FOUND" }) -
        valueOf(before.agent, "sallyport_agent_commands_total", { kind, outcome: "ARTIFACT_NOT_FOUND" }),
      480,
    );
    t.equal(
      valueOf(after.cloud, "sallyport_cloud_interactive_commands_total", { kind, outcome: "ARTIFACT_NOT_FOUND" }) -
        valueOf(before.cloud, "sallyport_cloud_interactive_commands_total", { kind, outcome: "ARTIFACT_NOT_FOUND" }),
      480,
    );
    t.equal(valueOf(after.cloud, "sallyport_cloud_sessions"), 1);
    t.equal(valueOf(after.cloud, "sallyport_cloud_handshakes_total", { outcome: "accepted" }), 1);
    t.equal(valueOf(after.agent, "sallyport_agent_link_state", { state: "online" }), 1);
    const lane = { lane: "interactive" };
    const sent = valueOf(after.cloud, "sallyport_cloud_link_bytes_total", { ...lane, direction: "sent" });
    const received = valueOf(after.agent, "sallyport_agent_link_bytes_total", { ...lane, direction: "received" });
    t.ok(sent > 100_000 && Math.abs(sent - received) < sent * 0.05, `both ends count the same: ${sent}, ${received}`);
  });

  await t.test("the agent's link as the API shows it", async (t) => {
    const shown = await waitFor(
      "beats and a measured loop",
      async () => {
        const one = await cloud.agent();
        return one.link?.roundTrip != null && one.status?.process?.loopDelayMs != null && one;
      },
      { timeoutMs: 40_000 },
    );
    t.ok(Math.abs(shown.status!.process!.clockSkewMs!) < 1_000, "one machine, one clock");
    t.ok(shown.link!.roundTrip!.p95Ms >= shown.link!.roundTrip!.p50Ms);
    t.ok(shown.link!.sent.interactive.frames > 480 && shown.link!.received.control.frames > 0);
    t.equal(shown.sessions, 1);
  });

  await t.test("connections: four ends, each with its reason", async (t) => {
    const back = (sessions: number) =>
      waitFor(
        "the agent to be back",
        async () => {
          const one = await cloud.agent();
          return one.state === "connected" && one.sessions >= sessions && one;
        },
        { timeoutMs: 60_000 },
      );
    const first = await cloud.agent();
    // a reset
    proxy.cut();
    await back(2);
    // a goodbye
    agent.program.kill("SIGTERM");
    await agent.program.exited;
    agent.start();
    await back(3);
    // silence: only the connection of now; the one that comes in its place flows
    for (const connection of proxy.connections) connection.setMode("swallow");
    await back(4);
    // a control plane that dies
    await cloud.program.killHard();
    await cloud.start();
    const now = await back(5);
    const { items } = await cloud.api.json<{ items: Connection[] }>(`/v1/agents/${now.id}/connections`);
    t.same(
      items.map(({ no }) => no),
      [5, 4, 3, 2, 1],
    );
    t.match(items[0], { endedAt: null, code: null, message: null, session: String, remoteAddress: String });
    t.match(items[1], { code: "LINK_LOST", message: /ended without saying/ }, "the control plane died");
    t.match(items[2], { code: /^(LINK_LOST|SESSION_SUPERSEDED)$/, message: /Nothing came|newer session/ }, "silence");
    t.match(items[3], { code: "GOING_AWAY", message: "The agent is stopping." }, "a goodbye");
    t.match(items[4], { code: "LINK_LOST", message: "The connection broke.", version: first.version }, "a reset");
    t.equal(items[4]!.at, first.connectedAt);
    for (const one of items.slice(1)) t.ok(one.endedAt! >= one.at, "it ended after it began");
    const page = await cloud.api.json<{ items: Connection[]; nextCursor: string }>(
      `/v1/agents/${now.id}/connections?limit=2`,
    );
    const rest = await cloud.api.json<{ items: Connection[] }>(
      `/v1/agents/${now.id}/connections?limit=500&cursor=${page.nextCursor}`,
    );
    t.same([...page.items, ...rest.items], items, "by pages as at once");
    t.equal((await cloud.api.problem(`/v1/agents/rep_${"0".repeat(32)}/connections`)).code, "NOT_FOUND");

    const { agent: metrics } = await scrape();
    t.equal(valueOf(metrics, "sallyport_agent_sessions_total"), 3, "since this start of the agent");
    t.ok(valueOf(metrics, "sallyport_agent_reconnects_total", { reason: "LINK_LOST" }) >= 1);

    const cli = await runProgram(t, {
      name: "sallyport",
      args: [binFile("cloud/bin/sallyport"), "agent", "connections", now.name],
      env: { SALLYPORT_URL: cloud.url, SALLYPORT_TOKEN: cloud.api.token! },
    });
    t.equal(cli.code, 0, cli.stderr);
    t.match(cli.stdout, /BEGAN +LASTED +FROM +VERSION +CODE +WHY/);
    t.match(cli.stdout, /GOING_AWAY +The agent is stopping\./);
    t.equal(cli.stdout.trim().split("\n").length, 6);
  });

  await t.test("the page of figures says neither less nor more than is served", async (t) => {
    const text = readFileSync(new URL("../../docs/operations/observability.md", import.meta.url), "utf8");
    const told = [...text.matchAll(/^\| `(sallyport_[a-z_]+)` \|/gm)].map((match) => match[1]!);
    t.same(told.toSorted(), [...served].sort());
    t.equal(new Set(told).size, told.length, "each once");
  });

  await t.test("no secret went to the collector", async (t) => {
    t.ok(collector.spans.some(({ attributes }) => String(attributes["sallyport.resource"]).includes("[redacted]")));
    t.same(scanBytes(Buffer.concat(collector.bytes), [canary], "spans"), []);
  });
});

interface World {
  cloud: TestCloud;
  agent: TestAgent;
  collector: Collector;
  /** Of the agent's; there is a file of that name. */
  secret: string;
  run: (headers: Record<string, string>) => Promise<{ id: string }>;
  ended: (id: string) => Promise<RunDetail>;
}

async function traces(t: Test, { cloud, agent, collector, secret, run, ended }: World): Promise<void> {
  const spansOf = (traceId: string, names: string[]): Promise<CollectedSpan[]> =>
    waitFor(`spans ${names.join(", ")}`, async () => {
      const found = collector.spans.filter((span) => span.traceId === traceId);
      return names.every((name) => found.some((span) => span.name === name)) && found;
    });
  const named = (spans: CollectedSpan[], name: string) => spans.find((span) => span.name === name)!;

  for (const what of ["preview", "run"] as const) {
    const traceId = hex(16);
    const caller = hex(8);
    const headers = { traceparent: `00-${traceId}-${caller}-01` };
    const [route, kind] =
      what === "run"
        ? ["POST /v1/runs", "pipeline.run"]
        : ["GET /v1/pools/:pool/stores/:store/preview", "artifact.preview"];
    if (what === "run") await ended((await run(headers)).id);
    else {
      const answer = await cloud.api.call(`${files}/preview?${at("table.csv")}`, { headers });
      t.match(answer.headers["traceresponse"], new RegExp(`^00-${traceId}-[0-9a-f]{16}-01$`));
    }
    const spans = await spansOf(traceId, [route, `dispatch ${kind}`, `command ${kind}`]);
    const server = named(spans, route);
    const dispatch = named(spans, `dispatch ${kind}`);
    const command = named(spans, `command ${kind}`);
    t.match(
      [server.parentSpanId, dispatch.parentSpanId, command.parentSpanId],
      [caller, server.spanId, dispatch.spanId],
    );
    t.match([server.service, dispatch.service, command.service], ["sallyport-cloud", "sallyport-cloud", "agent-lab"]);
    t.same([server.error, dispatch.error, command.error], [null, null, null]);
    t.ok(server.startMs <= dispatch.startMs + 5 && command.endMs >= command.startMs, "times are in order");
    const lines = (output: string, word: string) =>
      output
        .split("\n")
        .filter((line) => line.includes(traceId))
        .some((line) => line.includes(word));
    t.ok(lines(cloud.program.output.toString(), '"request"'), "the request's line names it");
    if (what === "run") {
      t.ok(lines(cloud.program.output.toString(), "command accepted"), "the dispatcher's line too");
      t.ok(lines(agent.program.output.toString(), "command ended"), "and the agent's");
    }
  }

  // a failure: the problem names the trace, the spans say the code
  const problem = await cloud.api.call(`${files}/preview?${at("not/there.csv")}`);
  const { traceId, code } = problem.json<{ traceId: string; code: string }>();
  t.match(problem.headers["traceresponse"], new RegExp(`^00-${traceId}-`));
  const failed = await spansOf(traceId, ["command artifact.preview", "dispatch artifact.preview"]);
  t.equal(named(failed, "command artifact.preview").error, code);
  t.equal(named(failed, "dispatch artifact.preview").error, code);
  t.ok(agent.program.output.toString().includes(traceId), "the agent's line of the failure names it");

  // not sampled by who began it: nothing is told of it
  const silent = hex(16);
  await cloud.api.json(`${files}/preview?${at("table.csv")}`, {
    headers: { traceparent: `00-${silent}-${hex(8)}-00` },
  });
  // a path that holds a secret of the agent's: known to its redactor since its figures were read with it
  const other = hex(16);
  const headers = { traceparent: `00-${other}-${hex(8)}-01` };
  await cloud.api.json(`${files}/preview?${at(`${secret}.csv`)}`, { headers });
  await spansOf(other, ["command artifact.preview"]);
  t.notOk(collector.spans.some((span) => span.traceId === silent));
}
