// What the benches of the whole way share: an S3 server with a large object, a control plane and an agent, both as the
// compiled programs, and what is asked of them.
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { randomBytes } from "node:crypto";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { repository, type Teardown } from "../support/launcher.ts";
import { startS3, type S3Server } from "../support/servers.ts";
import { connectAgent, TestCloud, type TestAgent } from "../support/stack.ts";

export const MIB = 1024 ** 2;
export const GIB = 1024 ** 3;

/** Ends in the reverse order, whatever happens. */
export async function withTeardown<T>(work: (t: Teardown) => Promise<T>): Promise<T> {
  const ends: (() => unknown)[] = [];
  try {
    return await work({ teardown: (fn) => void ends.push(fn) });
  } finally {
    for (const end of ends.toReversed()) await end();
  }
}

export function folderOf(t: Teardown, name: string): string {
  const folder = mkdtempSync(join(tmpdir(), `bench-${name}-`));
  t.teardown(() => rmSync(folder, { recursive: true, force: true, maxRetries: 3 }));
  return folder;
}

/** The compiled tree, made when it is not of the present sources. */
export function build(): void {
  execFileSync(process.execPath, [join(repository, "packaging/launch/build.mjs"), "--if-changed"], {
    stdio: ["ignore", "ignore", "inherit"],
  });
}

export interface World {
  readonly s3: S3Server;
  readonly bucket: string;
  readonly cloud: TestCloud;
  readonly agent: TestAgent;
  /** Of the content of KEY, through the control plane. */
  readonly contentUrl: string;
  /** Of the smallest question that goes to the agent and back. */
  readonly statUrl: string;
}

export const KEY = "big/object.bin";

export interface WorldOptions {
  readonly objectBytes: number;
  /** Holes instead of random bytes: for sizes beyond a laptop's disk. */
  readonly sparse?: boolean;
  /** A second store `slowlake` on the same bucket, at this endpoint. */
  readonly otherEndpoint?: (s3: S3Server) => Promise<string>;
  /** What the agent dials, absent: the control plane. */
  readonly through?: (cloud: TestCloud) => Promise<string>;
  /** More of the agent's configuration. */
  readonly config?: string;
  readonly cloudNodeArgs?: string[];
  readonly agentNodeArgs?: string[];
}

export async function startWorld(t: Teardown, options: WorldOptions): Promise<World> {
  build();
  const s3 = await startS3(t);
  const bucket = await s3.bucket();
  mkdirSync(join(s3.dataDir, bucket, "big"));
  const file = openSync(join(s3.dataDir, bucket, KEY), "w");
  if (options.sparse === true) ftruncateSync(file, options.objectBytes);
  else {
    const block = randomBytes(16 * MIB);
    for (let at = 0; at < options.objectBytes; at += block.length) {
      block.writeUInt32BE(at / block.length, 0);
      writeSync(file, block);
    }
  }
  closeSync(file);
  const folder = folderOf(t, "world");
  writeFileSync(join(folder, "small.txt"), "small\n");
  const secret = join(folderOf(t, "secret"), "key");
  writeFileSync(secret, s3.secretAccessKey, { mode: 0o600 });
  const store = (id: string, endpoint: string) => `
  - { id: ${id}, kind: s3, endpoint: ${endpoint}, region: ${s3.region}, bucket: ${bucket}, pathStyle: true,
      accessKeyId: ${s3.accessKeyId}, secretAccessKey: "\${file:${secret}}" }`;
  const cloud = await TestCloud.start(t, { tree: "dist", nodeArgs: options.cloudNodeArgs ?? [] });
  const agent = await connectAgent(t, cloud, "lab", {
    tree: "dist",
    nodeArgs: options.agentNodeArgs ?? [],
    ...(options.through === undefined ? {} : { url: await options.through(cloud) }),
    config: `
stores:
  - { id: box, kind: fs, root: ${folder} }${store("lake", s3.endpoint)}${options.otherEndpoint === undefined ? "" : store("slowlake", await options.otherEndpoint(s3))}
${options.config ?? ""}
policy:
  ceilings: { concurrentRuns: 2, concurrentSteps: 2, stepTimeoutMs: 3600000, stepsPerRun: 10, uploadBytes: 1073741824, streams: 128 }
  commands: ["artifact.*"]
  stores: [{ store: box, read: ["**"] }, { store: lake, read: ["**"] }, { store: slowlake, read: ["**"] }]
  release: { metadata: true, raw: [{ store: lake, paths: ["**"] }, { store: slowlake, paths: ["**"] }] }
`
      .replace(options.otherEndpoint === undefined ? ', { store: slowlake, read: ["**"] }' : "\0", "")
      .replace(options.otherEndpoint === undefined ? ', { store: slowlake, paths: ["**"] }' : "\0", ""),
  });
  return {
    s3,
    bucket,
    cloud,
    agent,
    contentUrl: `${cloud.url}/v1/pools/lab/stores/lake/content?path=${encodeURIComponent(KEY)}`,
    statUrl: `${cloud.url}/v1/pools/lab/stores/box/stat?path=small.txt`,
  };
}

/** CPU seconds so far of processes and all that they started. */
export function cpuSeconds(pids: readonly number[]): number {
  let ticks = 0;
  for (const pid of pids.flatMap(familyOf)) {
    try {
      const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
        .replace(/^.*\) /, "")
        .split(" ");
      ticks += Number(fields[11]) + Number(fields[12]);
    } catch {
      // ended meanwhile
    }
  }
  return ticks / 100;
}

function familyOf(pid: number): number[] {
  const all = [pid];
  try {
    for (const task of readdirSync(`/proc/${pid}/task`))
      for (const child of readFileSync(`/proc/${pid}/task/${task}/children`, "latin1").trim().split(" "))
        if (child !== "") all.push(...familyOf(Number(child)));
  } catch {
    // ended meanwhile
  }
  return all;
}

/** A download to nowhere. Resolves with seconds and bytes; rejects when curl is not content. */
export function curl(
  args: readonly string[],
  started?: (child: ChildProcess) => void,
): Promise<{ seconds: number; bytes: number }> {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const child = spawn("curl", ["-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download}", ...args], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    started?.(child);
    let text = "";
    child.stdout.setEncoding("utf8").on("data", (chunk: string) => (text += chunk));
    child.once("error", reject).once("close", (code) => {
      if (code === 0) resolve({ seconds: (performance.now() - began) / 1000, bytes: Number(text) });
      else reject(new Error(`curl ended with ${code}.`));
    });
  });
}

/** curl's own words for the object, at the S3 server or at a tunnel to it. */
export const s3Curl = (world: World, endpoint: string): string[] => [
  "--aws-sigv4",
  `aws:amz:${world.s3.region}:s3`,
  "--user",
  `${world.s3.accessKeyId}:${world.s3.secretAccessKey}`,
  "-H",
  "x-amz-content-sha256: UNSIGNED-PAYLOAD",
  `${endpoint}/${world.bucket}/${KEY}`,
];
export const ourCurl = (world: World): string[] => [
  "-H",
  `Authorization: Bearer ${world.cloud.api.token}`,
  world.contentUrl,
];
