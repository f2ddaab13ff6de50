// A real Docker Engine for a test process, by its recipe beside this file. Check `needs("docker")` of skip.ts first.
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import Docker from "dockerode";
import { cleanEnv, repository } from "../launcher.ts";
import type { Teardown } from "../launcher.ts";

const exec = promisify(execFile);

export interface DockerServer {
  readonly dir: string;
  readonly socket: string;
  /** The host's address on the engine's own bridge. */
  readonly bridgeAddress: string;
  /** The test's own client, for what the product never does. */
  readonly docker: Docker;
  stop(): Promise<void>;
  /** As a crash would: containers go on until the engine is there again. */
  killHard(): Promise<void>;
  /** On the same state, after stop or killHard. */
  start(): Promise<void>;
}

/** Starts an engine; it ends with the test, or soon after this process however that ends. */
export async function startDocker(t: Teardown, options: readonly string[] = []): Promise<DockerServer> {
  // A short path: the socket's has at most 107 bytes.
  const dir = mkdtempSync("/tmp/sp-docker-");
  const recipe = join(repository, "test/support/servers/docker");
  const env = cleanEnv({ SERVER_OWNER: String(process.pid) });
  const run = async (verb: string, more: readonly string[] = []): Promise<string> =>
    (await exec(recipe, [verb, dir, ...more], { env })).stdout;
  const start = async (): Promise<Map<string, string>> => {
    const lines = (await run("start", ["--", ...options])).split("\n").filter((line) => line.includes("="));
    return new Map(lines.map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]));
  };
  t.teardown(async () => {
    await run("stop");
    rmSync(dir, { recursive: true, force: true, maxRetries: 5 });
  });
  const settings = await start();
  const socket = settings.get("DOCKER_SOCKET")!;
  return {
    dir,
    socket,
    bridgeAddress: settings.get("DOCKER_BRIDGE_ADDRESS")!,
    docker: new Docker({ socketPath: socket }),
    stop: async () => void (await run("stop")),
    killHard: async () => void (await run("kill")),
    start: async () => void (await start()),
  };
}
