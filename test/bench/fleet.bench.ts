// 10,000 idle agents on one control plane: what each costs it, and how long until all are back after its restart. The
// agents are light (their link alone), in other processes; their handshake is the real one, over plain ws.
import { fork } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { repository } from "../support/launcher.ts";
import { TestCloud } from "../support/stack.ts";
import { atMost, atLeast, row, type BenchResult } from "./report.ts";
import { memoryOf, toldMemory } from "./told-memory.ts";
import { build, withTeardown } from "./world.ts";

const AGENTS = Number(process.env["BENCH_AGENTS"] ?? 10_000);
const PROCESSES = 4;
const SECRETS_AT_ONCE = 16;

export function benchFleet(): Promise<BenchResult> {
  return withTeardown(async (t) => {
    build();
    const cloud = await TestCloud.start(t, { tree: "dist", nodeArgs: [...toldMemory] });
    const folder = mkdtempSync("/dev/shm/bench-fleet-");
    t.teardown(() => rmSync(folder, { recursive: true, force: true, maxRetries: 3 }));
    await cloud.enroll("fleet");
    const secrets: string[] = [];
    await Promise.all(
      Array.from({ length: SECRETS_AT_ONCE }, async () => {
        while (secrets.length < AGENTS) secrets.push((await cloud.enroll("fleet")).secret);
      }),
    );
    secrets.length = AGENTS;
    // After so many requests: what the API keeps warm is no agent's.
    const empty = await memoryOf(cloud.program);
    const online = Array.from({ length: PROCESSES }, () => 0);
    const began = performance.now();
    for (let n = 0; n < PROCESSES; n++) {
      const child = fork(fileURLToPath(new URL("fleet-agents.ts", import.meta.url)), [cloud.url, `${folder}/${n}`], {
        cwd: repository,
        stdio: ["pipe", "inherit", "inherit", "ipc"],
      });
      const exited = new Promise((resolve) => child.once("exit", resolve));
      t.teardown(async () => {
        child.kill("SIGKILL");
        await exited;
      });
      child.on("message", (message) => (online[n] = (message as { online: number }).online));
      child.stdin!.end(secrets.slice((n * AGENTS) / PROCESSES, ((n + 1) * AGENTS) / PROCESSES).join("\n"));
    }
    const sum = () => online.reduce((all, one) => all + one, 0);
    const allIn = async (limitMs: number): Promise<number> => {
      const from = performance.now();
      while (sum() < AGENTS && performance.now() - from < limitMs) await sleep(50);
      return sum();
    };
    const inAtFirst = await allIn(150_000);
    const joinedS = (performance.now() - began) / 1000;
    // Everybody has sent a status and a beat, nobody a second one.
    await sleep(8_000);
    const full = await memoryOf(cloud.program);
    const wrong = await offline(cloud);

    await cloud.program.killHard();
    await sleep(1_000);
    const restarted = performance.now();
    await cloud.start();
    while (sum() === AGENTS && performance.now() - restarted < 5_000) await sleep(20);
    const inAgain = await allIn(120_000);
    const backS = inAgain < AGENTS ? Infinity : (performance.now() - restarted) / 1000;
    await sleep(3_000);
    const wrongAfter = await offline(cloud);
    const each = (key: "rss" | "heapUsed" | "external") => (full[key] - empty[key]) / 1024 / AGENTS;
    return {
      rows: [
        row("agents", AGENTS, ""),
        row("all in after", joinedS, "s"),
        row("all back after", backS, "s"),
        row("each, on the heap", each("heapUsed"), "KiB"),
        row("each, in buffers and native objects", each("external"), "KiB"),
        row("each, resident", each("rss"), "KiB"),
        row("control plane, resident", full.rss / 1024 ** 2, "MiB"),
      ],
      bars: [
        atLeast("fleet: agents in", inAtFirst, AGENTS, ""),
        atMost("fleet: each at the control plane, resident", each("rss"), 20, "KiB"),
        atMost("fleet: the same, heap and buffers alone", each("heapUsed") + each("external"), 20, "KiB"),
        atMost("fleet: all back after its restart", backS, 90, "s"),
        atMost("fleet: wrongly shown offline", wrong + wrongAfter, 0, ""),
      ],
    };
  });
}

/** Of agents that are all connected: how many are not shown so. */
async function offline(cloud: TestCloud): Promise<number> {
  let wrong = 0;
  let cursor: string | null = null;
  do {
    const path: string = `/v1/agents?limit=500${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`;
    const page = await cloud.api.json<{ items: { state: string }[]; nextCursor: string | null }>(path);
    wrong += page.items.filter(({ state }) => state !== "connected").length;
    cursor = page.nextCursor;
  } while (cursor !== null);
  return wrong;
}
