// The smallest question to an agent through the HTTP API (the stat of a file), beside an empty fastify route: one client
// and 32, closed loop, by wrk, in turns.
import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { repository } from "../support/launcher.ts";
import { connectAgent, TestCloud } from "../support/stack.ts";
import { atLeast, atMost, median, ratios, row, type BenchResult } from "./report.ts";
import { build, cpuSeconds, folderOf, withTeardown } from "./world.ts";

const run = promisify(execFile);
const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 9);
const SECONDS = 2;

const LUA = `done = function(summary, latency)
  local e = summary.errors
  print(string.format("RESULT %f %d %d %d", summary.requests / (summary.duration / 1e6), latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
`;

interface Read {
  rps: number;
  p50Us: number;
  p99Us: number;
}

export function benchApi(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    build();
    const folder = folderOf(t, "api");
    writeFileSync(join(folder, "small.txt"), "small\n");
    const lua = join(folderOf(t, "lua"), "told.lua");
    writeFileSync(lua, LUA);
    const cloud = await TestCloud.start(t, { tree: "dist" });
    const agent = await connectAgent(t, cloud, "lab", {
      tree: "dist",
      config: `
stores: [{ id: box, kind: fs, root: ${folder} }]
policy:
  ceilings: { streams: 128 }
  commands: ["artifact.*"]
  stores: [{ store: box, read: ["**"] }]
  release: { metadata: true }
`,
    });
    const peer = spawn(process.execPath, [join(repository, "test/bench/empty-get.ts")], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    t.teardown(() => peer.kill());
    const [port] = (await once(peer.stdout, "data")) as [Buffer];
    const urls = {
      ours: `${cloud.url}/v1/pools/lab/stores/box/stat?path=small.txt`,
      empty: `http://127.0.0.1:${Number(port.toString())}/v1/empty`,
    };
    const ask = async (url: string, clients: number, seconds = SECONDS): Promise<Read> => {
      const { stdout } = await run("wrk", [
        "-t1",
        `-c${clients}`,
        `-d${seconds}s`,
        "-H",
        `Authorization: Bearer ${cloud.api.token}`,
        "-s",
        lua,
        url,
      ]);
      const [, rps, p50, p99, failed] = /RESULT (\S+) (\d+) (\d+) (\d+)/.exec(stdout) ?? [];
      if (failed !== "0") throw new Error(`${failed} requests failed: ${stdout}`);
      return { rps: Number(rps), p50Us: Number(p50), p99Us: Number(p99) };
    };
    const all = { ours: { one: [] as Read[], many: [] as Read[] }, empty: { one: [] as Read[], many: [] as Read[] } };
    // What is compiled at its first use is not measured.
    for (const which of ["ours", "empty"] as const) await ask(urls[which], 32, 4);
    const pids = [cloud.program.pid, agent.program.pid];
    let cpu = 0;
    let requests = 0;
    for (let round = 0; round < ROUNDS; round++) {
      for (const which of ["empty", "ours"] as const) {
        all[which].one.push(await ask(urls[which], 1));
        const before = cpuSeconds(pids);
        const many = await ask(urls[which], 32);
        all[which].many.push(many);
        if (which === "ours") [cpu, requests] = [cpu + cpuSeconds(pids) - before, requests + many.rps * SECONDS];
      }
    }
    const of = (which: "ours" | "empty", how: "one" | "many", key: keyof Read) =>
      all[which][how].map((read) => read[key]);
    return {
      rows: [
        row("stat through the API, 1 client: p50", median(of("ours", "one", "p50Us")), "us"),
        row("stat through the API, 1 client: p99", median(of("ours", "one", "p99Us")), "us"),
        row("empty fastify route, 1 client: p50", median(of("empty", "one", "p50Us")), "us"),
        row("stat through the API, 32 clients", median(of("ours", "many", "rps")), "requests/s"),
        row("stat through the API, 32 clients: p50", median(of("ours", "many", "p50Us")) / 1000, "ms"),
        row("empty fastify route, 32 clients", median(of("empty", "many", "rps")), "requests/s"),
        row("CPU of agent and control plane", (cpu / requests) * 1e6, "us a request"),
      ],
      bars: [
        atMost(
          "API p50 / empty fastify route",
          median(ratios(of("ours", "one", "p50Us"), of("empty", "one", "p50Us"))),
          2.5,
          "x",
        ),
        atLeast(
          "API, 32 clients / empty fastify route",
          median(ratios(of("ours", "many", "rps"), of("empty", "many", "rps"))),
          0.3,
          "x",
        ),
      ],
      versions: {
        wrk:
          /wrk (\S+)/.exec(execFileSync("sh", ["-c", "wrk -v 2>&1 || true"], { encoding: "utf8" }))?.[1] ?? "unknown",
      },
    };
  });
}
