// A real Docker Engine, real containers, real kills. Images come from this machine's files; a registry is a few lines here.
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer, request, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { pino } from "pino";
import t, { type Test } from "tap";
import { pack } from "tar-stream";
import { systemClock } from "@sallyport/protocol";
import { startProgram, waitFor } from "../../../test/support/launcher.ts";
import { startDocker, type DockerServer } from "../../../test/support/servers/docker.ts";
import { busyboxFiles, busyboxImage, importImage } from "../../../test/support/servers/images.ts";
import { needs } from "../../../test/support/skip.ts";
import { workName, type ContainerSpec, type WorkName, type WorkSpec } from "../engine.ts";
import { createDockerEngine, type DockerEngine } from "./index.ts";
import { isBelow } from "./docker-engine.ts";

const MIB = 1024 ** 2;
const skip = needs("docker");
let server: DockerServer;
let image: string;
let agents = 0;
t.setTimeout(240_000);

if (skip === false) {
  server = await startDocker(t);
  image = await busyboxImage(server.docker);
}

function scene(t: Test, agentId = `agent-${++agents}`) {
  const stateDir = mkdtempSync(join(tmpdir(), "sallyport-docker-"));
  const log = pino({ level: "silent" });
  const make = (): DockerEngine =>
    createDockerEngine({ socket: server.socket, agentId, stateDir, clock: systemClock, log });
  const engine = make();
  t.teardown(async () => {
    const last = make();
    for (const { name } of await last.list().catch(() => [])) {
      await last.stop(name, 0);
      await last.forget(name);
    }
    await last.close();
    await engine.close();
    rmSync(stateDir, { recursive: true, force: true });
  });
  const folder = (step: string): string => {
    const work = join(stateDir, "work", step);
    for (const part of ["inputs", "outputs", "tmp", "home"]) mkdirSync(join(work, part), { recursive: true });
    return work;
  };
  return {
    agentId,
    stateDir,
    engine,
    make,
    folder,
    file: (name: string) => readFileSync(join(stateDir, name)),
    name: (step: string): WorkName => workName(agentId, step, 1),
    spec: (
      step: string,
      script: string,
      more: Partial<WorkSpec> & { network?: ContainerSpec["network"]; memoryBytes?: number; image?: string } = {},
    ): WorkSpec => ({
      name: workName(agentId, step, 1),
      executable: "/bin/sh",
      args: ["-c", script],
      env: { PATH: "/bin" },
      cwd: folder(step),
      stdout: join(stateDir, `${step}.out`),
      stderr: join(stateDir, `${step}.err`),
      ...more,
      container: {
        image: more.image ?? image,
        resources: { cpus: 0.5, memoryBytes: more.memoryBytes ?? 64 * MIB },
        network: more.network ?? { kind: "none" },
      },
    }),
  };
}

await t.test("ends are told apart, limits hold, and a name begins once", { skip }, async (t) => {
  const { engine, spec, name, file } = scene(t);
  const exited = async (step: string, script: string, more = {}) => {
    await engine.start(spec(step, script, more));
    return engine.ended(name(step));
  };
  t.match(await exited("ok", "echo out; echo err >&2"), { state: "exited", code: 0, signal: null, reason: "exit" });
  t.equal(file("ok.out").toString(), "out\n");
  t.equal(file("ok.err").toString(), "err\n");
  t.match(await engine.start(spec("ok", "echo again")), { state: "exited", code: 0 }, "the same name again");
  t.equal(file("ok.out").toString(), "out\n");
  t.match(await exited("seven", "exit 7"), { code: 7, signal: null, reason: "exit" });
  t.match(await exited("segv", "kill -SEGV $$"), { code: null, signal: "SIGSEGV", reason: "exit" });
  t.match(await exited("memory", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit 5"), { reason: "out-of-memory" });
  t.match(await exited("child", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit 0"), { code: 0, reason: "exit" });
  await exited(
    "limits",
    `id -u; id -g; pwd; env | sort; ls /sallyport; touch /x /sallyport/x; echo y > /tmp/y && echo tmp; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status;
     cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max;
     ulimit -c; ulimit -n; grep '^tmpfs /tmp' /proc/mounts; tr '\\0' ' ' < /proc/1/cmdline; ls /sys/class/net`.replaceAll(
      "| sort",
      "",
    ),
    { env: { PATH: "/bin", SECRET: "hush" } },
  );
  const text = file("limits.out").toString();
  for (const [what, pattern] of Object.entries({
    user: /^65532\n65532\n\/sallyport\/work\n/,
    "the secret is in the environment": /^SECRET=hush$/m,
    "its own /tmp": /^tmp$/m,
    "no capability": /^CapEff:\s0+$/m,
    "none to be had": /^CapBnd:\s0+$/m,
    "no new privileges": /^NoNewPrivs:\s1$/m,
    seccomp: /^Seccomp:\s2$/m,
    memory: /^67108864$/m,
    processes: /^1024$/m,
    cpus: /^50000( 100000)?$/m,
    "no core, 8192 files": /^0\n8192$/m,
    "/tmp": /^tmpfs \/tmp tmpfs rw,nosuid,nodev,noexec\S*size=65536k/m,
    "an init is the first process": /^\S*init\S* -- \/bin\/sh/m,
    "loopback alone": /\blo\n$/,
  }))
    t.match(text, pattern, what);
  t.match(
    file("limits.err").toString(),
    /touch: \/x: Read-only.*\n.*touch: \/sallyport\/x: Permission denied/,
    "nothing else to write to",
  );
  t.match(await engine.status(name("never")), { state: "absent" });
  t.match(
    await exited("no", "", { executable: "/no/such" }),
    { code: 127, reason: "exit" },
    "the init says what it could not begin",
  );
  t.match(file("no.err").toString(), /exec \/no\/such failed/);
  await t.rejects(engine.ended(name("never")), { code: "ENGINE_FAILED" });
  await exited("entry", "", { executable: "", args: ["-c", "echo by the entry point"] });
  t.equal(file("entry.out").toString(), "by the entry point\n");
  t.same(
    (await engine.list()).map((w) => w.name).sort(),
    ["ok", "seven", "segv", "memory", "child", "limits", "no", "entry"].map(name).sort(),
  );
  for (const work of await engine.list()) await engine.forget(work.name);
  t.same(await engine.list(), []);
  const { Volumes } = await server.docker.listVolumes();
  t.same(Volumes, [], "volumes go with their containers");
});

await t.test("files go in and come out as they are, and nothing else does", { skip }, async (t) => {
  const { engine, spec, name, folder } = scene(t);
  const hostile = [
    "plain",
    "with space",
    "nea\u0301 \u00fcml \u{1f680}",
    "-rf",
    "new\nline",
    "\"quo'te$(x)`",
    "back\\slash",
    "a".repeat(200),
    `deep/${"d".repeat(90)}/${"e".repeat(90)}/f`,
    ".hidden",
    "..two",
    "empty",
  ];
  const bytesOf = (path: string): Buffer =>
    path === "empty"
      ? Buffer.alloc(0)
      : createHash("sha512")
          .update(path)
          .digest()
          .subarray(0, 1 + (path.length % 60));
  const work = folder("copy");
  for (const path of hostile) {
    mkdirSync(join(work, "inputs", path, ".."), { recursive: true });
    writeFileSync(join(work, "inputs", path), bytesOf(path));
  }
  const big = Buffer.alloc(20 * MIB, Buffer.from("0123456789abcdef!"));
  writeFileSync(join(work, "inputs/big"), big);
  writeFileSync(join(work, "outputs/stale"), "from before");
  await engine.start(
    spec("copy", "rm outputs/stale; cp -r inputs/. outputs; ln outputs/big outputs/second; rm -r inputs"),
  );
  t.match(await engine.ended(name("copy")), { code: 0 });
  await t.rejects(engine.fetchOutputs(name("copy"), work, 40 * MIB), { code: "TOO_LARGE" });
  t.ok(existsSync(join(work, "outputs/stale")), "a fetch that fails changes nothing");
  t.same(readdirSync(work).sort(), ["home", "inputs", "outputs", "tmp"], "and leaves nothing");
  for (const again of [1, 2]) {
    await engine.fetchOutputs(name("copy"), work, 42 * MIB);
    for (const path of hostile)
      t.ok(
        readFileSync(join(work, "outputs", path)).equals(bytesOf(path)),
        `${again}: ${JSON.stringify(path.slice(0, 30))}`,
      );
    t.ok(readFileSync(join(work, "outputs/second")).equals(big), "a second name is a copy");
    t.notOk(existsSync(join(work, "outputs/stale")));
  }
  for (const [step, script] of Object.entries({
    link: "ln -s /etc/passwd outputs/x",
    linked: "mkdir /tmp/o; rm -r outputs; ln -s /etc outputs",
    pipe: "mkfifo outputs/p || busybox mkfifo outputs/p",
    name: "touch \"outputs/$(printf 'a\\377b')\"",
  })) {
    await engine.start(spec(step, script));
    t.match(await engine.ended(name(step)), { code: 0 }, step);
    await t.rejects(engine.fetchOutputs(name(step), folder(step), MIB), { code: "STEP_OUTPUT_MISSING" }, step);
  }
  const secret = folder("outward");
  symlinkSync("/etc/passwd", join(secret, "inputs/x"));
  await t.rejects(engine.start(spec("outward", "cat inputs/x")), {
    code: "ENGINE_FAILED",
    message: /neither a file nor a folder/,
  });
  t.match(await engine.status(name("outward")), { state: "absent" });
});

await t.test("output is in the files byte for byte, however often the agent is killed", { skip }, async (t) => {
  const { engine, spec, name, stateDir, agentId, file, make } = scene(t);
  // Lines short and long (over the Engine's 16 KiB), bytes that are no text, both streams; slow enough for five kills.
  const script = `i=0; long=$(head -c 40000 /dev/zero | tr '\\0' L)
    while [ $i -lt 2500 ]; do
      i=$((i+1)); echo "line $i"; echo "error $i" >&2
      if [ $((i % 100)) = 0 ]; then echo "$i $long"; printf '\\377\\376 %s\\n' $i; head -c 3 /dev/zero; echo; busybox usleep 200000; fi
    done`;
  const expected = { out: "", err: "" };
  for (let i = 1; i <= 2500; i++) {
    expected.out += `line ${i}\n`;
    expected.err += `error ${i}\n`;
    if (i % 100 === 0) expected.out += `${i} ${"L".repeat(40_000)}\n\xff\xfe ${i}\n\0\0\0\n`;
  }
  await engine.start(spec("log", script));
  await engine.close();
  const files = { stdout: join(stateDir, "log.out"), stderr: join(stateDir, "log.err") };
  let kills = 0;
  for (const bytes of [20_000, 150_000, 300_000, 420_000, 600_000]) {
    const agent = startProgram(t, {
      name: "follower",
      args: [
        "--disable-warning=ExperimentalWarning",
        fileURLToPath(new URL("fixtures/follower.ts", import.meta.url)),
        server.socket,
        agentId,
        stateDir,
        name("log"),
        files.stdout,
        files.stderr,
      ],
    });
    await waitFor("it to read on", () => agent.exit !== undefined || file("log.out").length >= bytes, {
      everyMs: 3,
      timeoutMs: 60_000,
    });
    if (agent.exit === undefined) kills++;
    await agent.killHard();
  }
  t.equal(kills, 5, "killed while it followed");
  const last = make();
  t.teardown(() => last.close());
  await last.attach(name("log"), files);
  t.match(await last.ended(name("log")), { code: 0 });
  t.equal(file("log.out").length, expected.out.length);
  t.ok(file("log.out").equals(Buffer.from(expected.out, "latin1")), "stdout");
  t.ok(file("log.err").equals(Buffer.from(expected.err, "latin1")), "stderr");
  const other = make();
  t.teardown(() => other.close());
  await other.attach(name("log"), files);
  await other.ended(name("log"));
  t.equal(file("log.out").length, expected.out.length, "read once more, nothing is doubled");
});

await t.test(
  "a stop ends all of it, is repeated without effect, and is known as one to a later agent",
  { skip },
  async (t) => {
    const { engine, spec, name, file, make } = scene(t);
    await engine.start(spec("deaf", "trap '' TERM; sleep 1000 & while true; do sleep 1; done"));
    t.match(await engine.status(name("deaf")), { state: "running" });
    const ended = engine.ended(name("deaf"));
    t.equal((await engine.stop(name("deaf"), 0)).stopped.length, 1);
    t.match(await ended, { code: null, signal: "SIGKILL", reason: "killed" });
    t.same(await engine.stop(name("deaf"), 0), { stopped: [] });
    await engine.start(
      spec("polite", "trap 'echo bye; exit 0' TERM; echo ready; while true; do busybox usleep 50000; done"),
    );
    await waitFor("ready", () => file("polite.out").length > 0);
    await engine.stop(name("polite"), 10_000);
    t.match(await engine.ended(name("polite")), { code: 0, reason: "exit" });
    t.equal(file("polite.out").toString(), "ready\nbye\n");
    const later = make();
    t.teardown(() => later.close());
    t.match(await later.status(name("deaf")), { reason: "killed" });
    await later.forget(name("deaf"));
    t.match(await later.status(name("deaf")), { state: "absent" });
    await later.start(spec("deaf", "kill -KILL $$"));
    t.match(
      await later.ended(name("deaf")),
      { signal: "SIGKILL", reason: "exit" },
      "the next of that name was not stopped",
    );
    await later.start(spec("busy", "sleep 1000"));
    await t.rejects(later.forget(name("busy")), { code: "ENGINE_FAILED" }, "what runs is not forgotten");
    const giveUp = new AbortController();
    const waiting = later.ended(name("busy"), giveUp.signal);
    giveUp.abort(new Error("enough"));
    await t.rejects(waiting, { message: "enough" });
  },
);

await t.test("what is another's stays: names, labels, containers, volumes", { skip }, async (t) => {
  const one = scene(t);
  const two = scene(t);
  const shared = workName("shared", "step", 1);
  await one.engine.start({ ...one.spec("x", "sleep 1000"), name: shared });
  t.match(await two.engine.status(shared), { state: "absent" }, "not adopted");
  await t.rejects(two.engine.start({ ...two.spec("x", "true"), name: shared }), {
    code: "ENGINE_FAILED",
    message: /taken/,
  });
  t.same(await two.engine.stop(shared, 0), { stopped: [] });
  await two.engine.forget(shared);
  // An image may bring labels that look like ours.
  const disguise = await importImage(server.docker, "sallyport-test/disguise", busyboxFiles(), [
    `LABEL sallyport.agent=${two.agentId} sallyport.work=disguised`,
    'CMD ["/bin/sleep","1000"]',
  ]);
  const stranger = await server.docker.createContainer({ Image: disguise, name: "a-stranger" });
  await stranger.start();
  t.teardown(() => stranger.remove({ force: true }));
  t.same(await two.engine.list(), []);
  t.match(await one.engine.status(shared), { state: "running" });
  t.ok((await stranger.inspect()).State.Running);
  await one.engine.stop(shared, 0);
  await one.engine.forget(shared);
});

await t.test("what an agent left between making and starting is made anew, and collected", { skip }, async (t) => {
  const { engine, spec, name, agentId, file, make } = scene(t);
  const left = (step: string) =>
    server.docker.createContainer({
      Image: image,
      name: `sallyport.${name(step)}`,
      Labels: { "sallyport.agent": agentId, "sallyport.work": name(step) },
      HostConfig: {
        Mounts: [
          { Type: "volume", Target: "/sallyport", VolumeOptions: { Labels: { "sallyport.agent": agentId } } },
        ] as never,
      },
    });
  const before = await left("half");
  await left("lost");
  t.match(await engine.status(name("half")), { state: "absent" }, "it never began");
  await engine.start(spec("half", "echo whole"));
  t.match(await engine.ended(name("half")), { code: 0 });
  t.equal(file("half.out").toString(), "whole\n");
  await t.rejects(before.inspect(), /no such container/);
  t.same(
    (await engine.list()).map((w) => w.name),
    [name("half")],
  );
  await t.rejects(server.docker.getContainer(`sallyport.${name("lost")}`).inspect(), /no such container/);
  // Somebody removes a container and not its volume.
  await server.docker.getContainer(`sallyport.${name("half")}`).remove({ force: true });
  const volumes = async () =>
    (await server.docker.listVolumes({ filters: { label: [`sallyport.agent=${agentId}`] } as never })).Volumes ?? [];
  t.equal((await volumes()).length, 1);
  const later = make();
  t.teardown(() => later.close());
  t.same(await later.list(), []);
  t.same(await volumes(), []);
  const both = await Promise.all([later.start(spec("twice", "echo once")), later.start(spec("twice", "echo once"))]);
  t.equal(both.length, 2);
  await later.ended(name("twice"));
  t.equal(file("twice.out").toString(), "once\n");
  // A restarted agent looks through what is there while it takes up its commands: both remove what never began.
  for (const step of ["one", "two", "three"]) {
    await left(step);
    await Promise.all([later.list(), later.list(), later.start(spec(step, "echo once"))]);
    t.match(await later.ended(name(step)), { code: 0 });
    t.equal(file(`${step}.out`).toString(), "once\n");
  }
});

await t.test("an image is known by its digest: there, pulled, missing, denied", { skip }, async (t) => {
  const { engine, spec, name, file } = scene(t);
  const registry = await startRegistry(t);
  const reference = (repository: string, digest = registry.digest): string =>
    `${registry.host}/${repository}@${digest}`;
  await engine.prepare(image);
  await t.rejects(engine.prepare(`sha256:${"0".repeat(64)}`), { code: "IMAGE_MISSING", message: /by an id/ });
  await t.rejects(engine.prepare(null), { code: "IMAGE_INVALID" });
  await t.rejects(engine.prepare("busybox:latest"), { code: "IMAGE_INVALID" });
  await t.rejects(engine.start(spec("early", "true", { image: reference("good") })), { code: "IMAGE_MISSING" });
  await Promise.all([engine.prepare(reference("good")), engine.prepare(reference("good"))]);
  t.equal(registry.manifests(), 1, "two that want it pull it once");
  await engine.start(spec("pulled", "cat /from", { image: reference("good") }));
  await engine.ended(name("pulled"));
  t.equal(file("pulled.out").toString(), "the registry\n");
  await t.rejects(engine.prepare(reference("good", `sha256:${"1".repeat(64)}`)), { code: "IMAGE_MISSING" });
  await t.rejects(
    engine.prepare(reference("forged", `sha256:${"2".repeat(64)}`)),
    { code: "IMAGE_MISSING" },
    "other bytes than the digest's",
  );
  await t.rejects(engine.prepare(reference("private")), { code: "IMAGE_DENIED" });
  await t.rejects(engine.prepare(reference("forbidden")), { code: "IMAGE_DENIED" });
  await t.rejects(engine.prepare(`127.0.0.1:1/nobody@${registry.digest}`), { code: "IMAGE_MISSING" });
  const leave = new AbortController();
  const pulling = engine.prepare(reference("slow"), leave.signal);
  await waitFor("the pull has begun", () => registry.slow());
  leave.abort(new Error("left"));
  await t.rejects(pulling, { message: "left" });
});

await t.test(
  "networks: the agent's own is internal and reached from here, others by name alone",
  { skip },
  async (t) => {
    const { engine, spec, name, agentId } = scene(t);
    const serve = "while true; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhello' | busybox nc -l -p 8080; done";
    await engine.start(spec("serve", serve, { network: { kind: "serving", port: 8080 } }));
    const address = (await engine.address(name("serve"), 8080))!;
    t.equal(await waitFor("an answer", () => get(address.host, address.port)), "hello");
    const network = (await server.docker.getNetwork(`sallyport-${agentId}`).inspect()) as {
      Internal: boolean;
      Options: object;
    };
    t.match(network, { Internal: true, Options: { "com.docker.network.bridge.enable_icc": "false" } });
    await engine.start(
      spec(
        "peer",
        `busybox nc -w 3 ${address.host} 8080 </dev/null && echo REACHED; busybox nslookup example.com && echo RESOLVED; busybox nc -w 3 192.0.2.1 80 </dev/null && echo OUT; exit 0`,
        { network: { kind: "serving", port: 8080 } },
      ),
    );
    await engine.ended(name("peer"));
    t.equal(
      readFileSync(spec("peer", "").stdout, "utf8").match(/REACHED|RESOLVED|OUT/),
      null,
      "not by a neighbour, and no way out",
    );
    await engine.start(spec("alone", "sleep 1000"));
    t.equal(await engine.address(name("alone"), 1), null);
    t.equal(await engine.address(name("never"), 1), null);
    await engine.stop(name("serve"), 0);
    t.equal(await engine.address(name("serve"), 8080), null, "an ended one has no address");
    await t.rejects(engine.start(spec("lost", "true", { network: { kind: "named", name: "no-such" } })), {
      code: "ENGINE_FAILED",
      message: /no network named "no-such"/,
    });
    for (const bad of ["host", "none", "container:abc", `container:sallyport.${name("alone")}`])
      await t.rejects(
        engine.start(spec("bad", "true", { network: { kind: "named", name: bad } })),
        { code: "ENGINE_FAILED" },
        bad,
      );
    const made = await server.docker.createNetwork({ Name: `customers-${agentId}` });
    t.teardown(() => made.remove());
    await engine.start(
      spec("named", "ls /sys/class/net", { network: { kind: "named", name: `customers-${agentId}` } }),
    );
    await engine.ended(name("named"));
    t.match(readFileSync(spec("named", "").stdout, "utf8"), /eth0/);
    t.teardown(async () => {
      for (const { name: work } of await engine.list()) {
        await engine.stop(work, 0);
        await engine.forget(work);
      }
      await server.docker.getNetwork(`sallyport-${agentId}`).remove();
    });
  },
);

await t.test(
  "an Engine that goes away: said so, waited for, and then told as it is",
  { skip, timeout: 120_000 },
  async (t) => {
    const { engine, spec, name, file } = scene(t);
    await engine.start(spec("before", "echo first; sleep 1000"));
    await engine.start(spec("done", "echo done"));
    await engine.ended(name("done"));
    await waitFor("its output", () => file("before.out").length > 0);
    let settled = false;
    const ended = engine.ended(name("before"));
    void ended.finally(() => (settled = true)).catch(() => undefined);
    await server.killHard();
    await waitFor("it is noticed", () =>
      engine.status(name("before")).then(
        () => false,
        (error: { code?: string }) => error.code === "ENGINE_UNREACHABLE",
      ),
    );
    await t.rejects(engine.prepare(image), {
      code: "ENGINE_UNREACHABLE",
      message: new RegExp(server.socket.replaceAll(".", "\\.")),
    });
    await t.rejects(engine.start(spec("while", "true")), { code: "ENGINE_UNREACHABLE" });
    await t.rejects(engine.list(), { code: "ENGINE_UNREACHABLE" });
    t.notOk(settled, "the wait for an end goes on");
    await server.start();
    t.match(
      await ended,
      { state: "exited", reason: "exit" },
      "an Engine that comes back without live-restore ends what ran",
    );
    t.match(await engine.status(name("done")), { state: "exited", code: 0 });
    await engine.start(spec("after", "echo after"));
    t.match(await engine.ended(name("after")), { code: 0 });
    t.equal(file("after.out").toString(), "after\n");
    t.equal(file("before.out").toString(), "first\n");
    const nowhere = createDockerEngine({
      socket: join(server.dir, "none.sock"),
      agentId: "x",
      stateDir: mkdtempSync(join(server.dir, "x-")),
      clock: systemClock,
      log: pino({ level: "silent" }),
    });
    await t.rejects(nowhere.prepare(image), { code: "ENGINE_UNREACHABLE", fix: /engines\.docker\.socket/ });
    await nowhere.close();
  },
);

await t.test("versions are compared by number", async (t) => {
  for (const [version, below] of [
    ["20.10.24+dfsg1", true],
    ["29.5.0", true],
    ["29.5.1", false],
    ["29.10", false],
    ["30.0.0-rc1", false],
    ["dev", true],
  ] as const)
    t.equal(isBelow(version, [29, 5, 1]), below, version);
});

function get(host: string, port: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const asked = request({ host, port, agent: false, timeout: 2000 }, (answer) => {
      let text = "";
      answer.on("data", (chunk) => (text += chunk));
      answer.on("end", () => resolve(text));
    });
    asked.on("error", reject);
    asked.end();
  });
}

/** Serves one image to pullers, and the refusals that a registry has. */
async function startRegistry(t: Test) {
  const layer = pack();
  for (const folder of ["bin", "proc", "sys", "dev", "tmp"])
    layer.entry({ name: folder, type: "directory", mode: 0o755 });
  layer.entry({ name: "bin/busybox", mode: 0o755 }, busyboxFiles()[0]!.bytes as string);
  for (const tool of ["sh", "cat"]) layer.entry({ name: `bin/${tool}`, type: "symlink", linkname: "busybox" });
  layer.entry({ name: "from", mode: 0o644 }, "the registry\n");
  layer.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of layer) chunks.push(chunk as Buffer);
  const tar = Buffer.concat(chunks);
  const sha = (bytes: Buffer): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
  const zipped = gzipSync(tar);
  const config = Buffer.from(
    JSON.stringify({
      architecture: "amd64",
      os: "linux",
      config: {},
      rootfs: { type: "layers", diff_ids: [sha(tar)] },
    }),
  );
  const type = "application/vnd.docker.distribution.manifest.v2+json";
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: type,
      config: { mediaType: "application/vnd.docker.container.image.v1+json", size: config.length, digest: sha(config) },
      layers: [
        { mediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", size: zipped.length, digest: sha(zipped) },
      ],
    }),
  );
  const blobs = new Map([config, zipped].map((bytes) => [sha(bytes), bytes]));
  let manifests = 0;
  let slow = false;
  const http: Server = createServer((asked, answer) => {
    const [, repository, kind, digest] = /^\/v2\/([a-z]+)\/(manifests|blobs)\/(.+)$/.exec(asked.url ?? "") ?? [];
    const refuse = (status: number, code: string): void => {
      answer.writeHead(status, {
        "content-type": "application/json",
        ...(status === 401 ? { "www-authenticate": "Basic realm=test" } : {}),
      });
      answer.end(JSON.stringify({ errors: [{ code, message: code.toLowerCase() }] }));
    };
    if (repository === undefined) return void answer.end("{}");
    if (repository === "private") return refuse(401, "UNAUTHORIZED");
    if (repository === "forbidden") return refuse(403, "DENIED");
    if (repository === "slow") {
      slow = true;
      return;
    }
    if (kind === "manifests" && (digest === sha(manifest) || repository === "forged")) {
      if (asked.method === "GET" && repository === "good") manifests++;
      answer.writeHead(200, {
        "content-type": type,
        "docker-content-digest": digest!,
        "content-length": manifest.length,
      });
      return void answer.end(asked.method === "HEAD" ? undefined : manifest);
    }
    const blob = blobs.get(digest!);
    if (blob === undefined) return refuse(404, kind === "manifests" ? "MANIFEST_UNKNOWN" : "BLOB_UNKNOWN");
    answer.writeHead(200, { "content-length": blob.length });
    answer.end(blob);
  });
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
  t.teardown(() => {
    http.closeAllConnections();
    http.close();
  });
  return {
    host: `127.0.0.1:${(http.address() as AddressInfo).port}`,
    digest: sha(manifest),
    manifests: () => manifests,
    slow: () => slow,
  };
}
