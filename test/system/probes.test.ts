// Ten reaches from inside a step's container: at the Engine, the machine, the agent, other containers. Each is first made
// from a container that may do it, where it must succeed: a probe that cannot reach anything would prove nothing.
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import t, { type Test } from "tap";
import { systemClock } from "@sallyport/protocol";
import { createDockerEngine } from "../../agent/engines/docker/index.ts";
import { workName } from "../../agent/engines/engine.ts";
import { startDocker } from "../support/servers/docker.ts";
import { busyboxFiles, importImage, nodeFiles } from "../support/servers/images.ts";
import { needs } from "../support/skip.ts";

t.setTimeout(240_000);
const AGENT_FILE = "a-secret-of-the-agent";

/** Runs in the container; prints {probe: what it reached, or null}. `known` is in the environment. */
const PROBES = `
const { connect } = require("node:net");
const { execFileSync } = require("node:child_process");
const fs = require("node:fs");
const known = JSON.parse(process.env.KNOWN);
const dial = (where) => new Promise((resolve) => {
  const socket = connect(where);
  const end = (value) => { socket.destroy(); resolve(value); };
  socket.setTimeout(1500, () => end(null));
  socket.on("connect", () => end(JSON.stringify(where)));
  socket.on("error", () => end(null));
});
const first = async (list) => (await Promise.all(list)).find((found) => found !== null) ?? null;
const attempt = (work) => { try { return work() ?? null; } catch { return null; } };
const any = (...works) => { for (const work of works) { const found = attempt(work); if (found) return String(found).slice(0, 200); } return null; };
const run = (file, ...args) => execFileSync(file, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim();
const sh = (text) => run("/bin/sh", "-c", text);
const probes = {
  "Engine socket": () => first(["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", known.engine].map((path) => dial({ path }))),
  "metadata address": () => first([80, 443].map((port) => dial({ host: known.metadata, port }))),
  "host's listeners": () => first(known.hosts.map((host) => dial({ host, port: known.port }))),
  "agent": async () => (await first([dial({ path: known.agentSocket })])) ?? any(() => fs.readFileSync(known.agentFile, "utf8")),
  "other containers": () => first(known.others.map((host) => dial({ host, port: 8080 }))),
  // The program itself belongs to root and is marked setuid.
  "setuid": () => any(() => process.geteuid() === 0 && process.getuid() !== 0 && "root by a setuid program"),
  "devices": () => any(
    () => fs.readdirSync("/dev").find((name) => /^(sd|vd|xvd|nvme|loop|mem$|kmsg$|kvm$|fuse$)/.test(name)),
    () => { sh("busybox mknod " + process.cwd() + "/disk b " + known.disk + " && head -c 512 " + process.cwd() + "/disk >/dev/null"); return "made a disk"; }),
  "host's files": () => any(
    () => fs.existsSync(known.hostFile) && known.hostFile,
    () => { sh("busybox mount -t tmpfs none /tmp"); return "mounted"; },
    () => { fs.writeFileSync("/probe", ""); return "wrote to the root"; }),
  "kernel": () => any(
    () => { const now = fs.readFileSync("/proc/sys/kernel/hostname"); fs.writeFileSync("/proc/sys/kernel/hostname", now); return "wrote to /proc/sys"; },
    () => { fs.closeSync(fs.openSync("/proc/sysrq-trigger", "w")); return "opened sysrq"; },
    () => { fs.closeSync(fs.openSync("/sys/kernel/uevent_helper", "w")); return "opened /sys"; },
    () => fs.readFileSync("/proc/" + known.pid + "/environ", "latin1").includes(known.mark) && "read a process of the host",
    () => fs.readFileSync("/proc/kcore").length && "read /proc/kcore"),
  "raw sockets, tracing": () => any(
    () => { sh("busybox ping -c 1 -W 1 127.0.0.1"); return "sent a raw packet"; },
    () => { sh("busybox unshare -m true"); return "made a namespace"; },
    () => { fs.closeSync(fs.openSync("/proc/" + known.pid + "/mem", "r+")); return "opened the memory of a process of the host"; }),
};
(async () => {
  const found = {};
  for (const [name, probe] of Object.entries(probes)) found[name] = await probe();
  console.log(JSON.stringify(found));
})();
`;

await t.test(
  "ten probes from a step reach nothing, and each reaches something where it may",
  { skip: needs("docker") },
  async (t) => {
    const server = await startDocker(t);
    const files = [
      ...busyboxFiles(),
      ...nodeFiles().map((file) => (file.path === "usr/bin/node" ? { ...file, mode: 0o4755 } : file)),
    ];
    const image = await importImage(server.docker, "sallyport-test/probes", files);
    const stateDir = mkdtempSync(join(tmpdir(), "sp-probes-"));
    t.teardown(() => rmSync(stateDir, { recursive: true, force: true }));
    writeFileSync(join(stateDir, "secret"), AGENT_FILE);
    await listen(t, join(stateDir, "agent.sock"));
    const port = await listen(t, 0);
    const metadata = await metadataServer(t);
    // A neighbour on the engine's own bridge, and one on another network.
    const others: string[] = [];
    for (const name of ["neighbour", "second"]) {
      const one = await server.docker.createContainer({
        Image: image,
        name,
        Entrypoint: ["/usr/bin/node"],
        Cmd: ["-e", 'require("node:net").createServer((s) => s.end()).listen(8080, "0.0.0.0")'],
      });
      await one.start();
      t.teardown(() => one.remove({ force: true }));
      others.push((await one.inspect()).NetworkSettings.Networks["bridge"]!.IPAddress, name);
    }
    const hosts = [
      ...new Set([
        ...Object.values(networkInterfaces()).flatMap((list) =>
          (list ?? []).map(({ address, scopeid, family }) => (family === "IPv6" && scopeid ? "" : address)),
        ),
        server.bridgeAddress,
        "host.docker.internal",
      ]),
    ].filter((host) => host !== "" && host !== "127.0.0.1" && host !== "::1");
    t.ok(hosts.includes(server.bridgeAddress), "the bridge's gateway is among the host's addresses");
    const [major, minor] = execFileSync("stat", ["-c", "%t %T", blockDevice()], { encoding: "utf8" })
      .trim()
      .split(" ")
      .map((n) => Number.parseInt(n, 16));
    const mark = "MARK=a-process-of-the-host";
    const hostProcess = spawn("sleep", ["600"], { env: { MARK: "a-process-of-the-host" }, stdio: "ignore" });
    t.teardown(() => hostProcess.kill("SIGKILL"));
    const known = {
      engine: server.socket,
      metadata,
      hosts,
      port,
      agentSocket: join(stateDir, "agent.sock"),
      agentFile: join(stateDir, "secret"),
      others,
      disk: `${major} ${minor}`,
      hostFile: join(stateDir, "secret"),
      pid: hostProcess.pid,
      mark,
    };
    const reached = async (work: () => Promise<string>): Promise<Record<string, string | null>> =>
      JSON.parse(await work()) as Record<string, string | null>;

    // Each of the ten must be able to succeed. Setuid: without the rights of root, and without the bar to gain them.
    const control = async (more: { User?: string; HostConfig: object }): Promise<string> => {
      const body = {
        Image: image,
        Entrypoint: ["/usr/bin/node"],
        Cmd: ["-e", PROBES],
        Env: [`KNOWN=${JSON.stringify(known)}`, "PATH=/usr/bin:/bin"],
        Tty: true,
        ...more,
      };
      const one = await server.docker.createContainer(body);
      t.teardown(() => one.remove({ force: true }));
      await one.start();
      await one.wait();
      // The client takes an answer that is JSON for one of the Engine's.
      const answer: unknown = await one.logs({ stdout: true, stderr: true, follow: false });
      if (Buffer.isBuffer(answer)) throw new Error(`the control printed no findings: ${answer.toString()}`);
      return JSON.stringify(answer);
    };
    const binds = [`${stateDir}:${stateDir}`, `${server.dir}:${server.dir}`];
    const open = await reached(() =>
      control({
        HostConfig: {
          // All that `privileged` gives, one by one: a machine that is itself confined refuses it as a whole.
          CapAdd: ["SYS_ADMIN", "SYS_PTRACE", "MKNOD", "NET_RAW"],
          SecurityOpt: ["seccomp=unconfined", "apparmor=unconfined"],
          MaskedPaths: [],
          ReadonlyPaths: [],
          Devices: [{ PathOnHost: blockDevice(), PathInContainer: blockDevice(), CgroupPermissions: "rwm" }],
          PidMode: "host",
          NetworkMode: "bridge",
          Binds: binds,
        },
      }),
    );
    const user = await reached(() => control({ User: "65532:65532", HostConfig: { NetworkMode: "bridge" } }));
    open["setuid"] = user["setuid"] ?? null;
    t.equal(Object.keys(open).length, 10);
    for (const [probe, found] of Object.entries(open)) t.type(found, "string", `can be reached where it may: ${probe}`);

    const engine = createDockerEngine({
      socket: server.socket,
      agentId: "probes",
      stateDir,
      clock: systemClock,
      log: pino({ level: "silent" }),
    });
    t.teardown(() => engine.close());
    const cwd = join(stateDir, "work");
    mkdirSync(join(cwd, "outputs"), { recursive: true });
    const name = workName("probes", "step", 1);
    const stdout = join(stateDir, "out");
    await engine.start({
      name,
      executable: "/usr/bin/node",
      args: ["-e", PROBES],
      env: { KNOWN: JSON.stringify(known), PATH: "/usr/bin:/bin" },
      cwd,
      stdout,
      stderr: join(stateDir, "err"),
      container: { image, resources: { cpus: 1, memoryBytes: 256 * 1024 ** 2 }, network: { kind: "none" } },
    });
    t.match(await engine.ended(name), { code: 0 }, readFileSync(join(stateDir, "err"), "utf8"));
    const step = await reached(async () => readFileSync(stdout, "utf8"));
    t.same(Object.keys(step), Object.keys(open));
    for (const [probe, found] of Object.entries(step)) t.equal(found, null, `not reached by a step: ${probe}`);
    await engine.forget(name);
  },
);

/** Port, or 0 for a socket's path. On every address of the host. */
async function listen(t: Test, where: string | number): Promise<number> {
  const server: Server = createServer((socket) => socket.end());
  await new Promise<void>((resolve) =>
    typeof where === "string" ? server.listen(where, resolve) : server.listen(where, "0.0.0.0", resolve),
  );
  t.teardown(() => server.close());
  const address = server.address();
  return typeof address === "object" && address !== null ? address.port : 0;
}

/** What answers at the clouds' metadata address: here it is put on the loopback interface for the time of the test. */
async function metadataServer(t: Test): Promise<string> {
  const address = "169.254.169.254";
  const there = Object.values(networkInterfaces()).some((list) => list?.some((one) => one.address === address));
  if (!there) {
    execFileSync("ip", ["addr", "add", `${address}/32`, "dev", "lo"]);
    t.teardown(() => execFileSync("ip", ["addr", "del", `${address}/32`, "dev", "lo"]));
  }
  const server = createServer((socket) => socket.end());
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(80, address, resolve);
  });
  t.teardown(() => server.close());
  return address;
}

function blockDevice(): string {
  const found = readFileSync("/proc/partitions", "utf8").match(/\b(vda|sda|xvda|nvme0n1|loop0)\b/);
  if (found === null) throw new Error("this machine shows no block device");
  return `/dev/${found[0]}`;
}
