// The images, built by the project's own command without a registry, on a real Docker Engine: confined as the page's line
// says, as a user that no image knows, they do what the programs do.
import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import t from "tap";
import type { ArtifactEntry, PipelineInput } from "@sallyport/protocol";
import type { RunDetail } from "../../cloud/http/api.ts";
import { arithmetic } from "../../packaging/serving/fixtures/onnx.ts";
import { TestApi } from "../support/api.ts";
import { buildImage, type ImageName } from "../support/built-image.ts";
import { Composition, docker as client } from "../support/compose.ts";
import { cleanEnv, repository, tempDir, waitFor, type Teardown } from "../support/launcher.ts";
import { startDocker } from "../support/servers/docker.ts";
import { needs } from "../support/skip.ts";
import { CloudClient, TERMINAL, TestCloud } from "../support/stack.ts";

/** What each may weigh at most; the README says what they do weigh. */
const LIMIT_BYTES: Record<ImageName, number> = { agent: 165e6, "agent-serving": 225e6, cloud: 165e6, serving: 205e6 };
/** No image knows it, and its group is not root's. */
const USER = "54321:54321";

/** Hands connections to `address` on to this machine's loopback; for containers, which do not see that. */
async function forwarder(t: Teardown, address: string): Promise<{ port: number; to: (port: number) => void }> {
  let target = 0;
  const server = createServer((from) => {
    const to = connect(target, "127.0.0.1");
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
      one.pipe(other);
    }
    t.teardown(() => from.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, address, resolve));
  t.teardown(() => new Promise((resolve) => server.close(resolve)));
  return { port: (server.address() as { port: number }).port, to: (port) => (target = port) };
}

/** A folder that every user may look into. */
function openDir(t: Teardown, name: string): string {
  const dir = tempDir(t, name);
  chmodSync(dir, 0o755);
  return dir;
}

t.setTimeout(600_000);

t.test("images", { skip: needs("docker"), timeout: 540_000 }, async (t) => {
  const engine = await startDocker(t);
  const docker = (...args: string[]) => client(engine.socket, ...args);
  const ids = {} as Record<ImageName, string>;
  for (const name of ["agent", "agent-serving", "cloud", "serving"] as const)
    ids[name] = await buildImage(engine.socket, name);

  await t.test("what is in them", async (t) => {
    const layers: Record<string, string[]> = {};
    for (const [name, id] of Object.entries(ids) as [ImageName, string][]) {
      const inspected = await docker("image", "inspect", "--format", "{{json .}}", id);
      const image = JSON.parse(inspected) as {
        Size: number;
        RootFS: { Layers: string[] };
        Config: { User: string; Entrypoint: string[]; Labels: Record<string, string> };
      };
      t.comment(`${name}: ${(image.Size / 1e6).toFixed(1)} MB`);
      t.ok(image.Size < LIMIT_BYTES[name], `${name} is small: ${image.Size} bytes`);
      t.equal(image.Config.User, "65532:65532", `${name} is not root's`);
      t.equal(image.Config.Entrypoint[0], "/usr/bin/tini", `${name} begins with an init`);
      t.match(image.Config.Labels["org.opencontainers.image.version"], /^\d+\.\d+\.\d+/);
      layers[name] = image.RootFS.Layers;

      const dir = openDir(t, name);
      await docker("create", "--name", `look-${name}`, id);
      await docker("export", "--output", join(dir, "all.tar"), `look-${name}`);
      await docker("rm", `look-${name}`);
      const list = await promisify(execFile)("tar", ["-tvf", join(dir, "all.tar")], { maxBuffer: 64 * 1024 * 1024 });
      const files = list.stdout.split("\n").filter((line) => line !== "");
      t.same(
        files.filter((line) => /^-(..s|.....s)/i.test(line)),
        [],
        `${name}: no setuid or setgid file`,
      );
      const paths = files.map((line) => line.split(/\s+/).slice(5).join(" "));
      const has = (pattern: RegExp) => paths.filter((path) => pattern.test(path)).slice(0, 5);
      t.same(has(/(^|\/)(npm|npx|corepack|apt|dpkg|apk)$/), [], `${name}: no package manager`);
      t.same(has(/\.(ts|tsx|map)$|\.test\.js$/), [], `${name}: no sources`);
      t.same(has(/darwin|win32|windows|-musl/), [], `${name}: nothing of other platforms`);
      if (name !== "cloud") t.same(has(/opt\/sallyport\/cloud\//), [], `${name}: no cloud code`);
      if (name !== "cloud") t.same(has(/node_modules\/(fastify|kysely)\//), [], `${name}: none of its packages`);
      if (name === "cloud" || name === "serving") t.same(has(/opt\/sallyport\/agent\//), [], `${name}: no agent code`);
      const serves = name === "serving" || name === "agent-serving";
      t.equal(has(/onnxruntime/).length > 0, serves, `${name}: the runtime of models ${serves ? "" : "not "}there`);
      t.equal(has(/(^|\/)(sh|bash|busybox)$/).length > 0, name === "agent-serving", `${name}: a shell or none`);

      await promisify(execFile)("tar", ["-xf", join(dir, "all.tar"), "-C", dir, "opt", "etc", "usr/local"]);
      // Of what is ours and the packages': paths of the machine that built it, keys, enrolment secrets.
      for (const word of [`\\Q${repository}/\\E`, "PRIVATE KEY-----\\s+[A-Za-z0-9+/]{40}", "spe_[A-Za-z0-9_-]{40}"]) {
        const found = await promisify(execFile)("grep", ["-rlPz", "--", word, join(dir, "opt"), join(dir, "etc")]).then(
          ({ stdout }) => stdout.trim(),
          () => "",
        );
        t.equal(found, "", `${name}: nowhere ${word.slice(0, 12)}`);
      }
    }
    t.equal(new Set(Object.values(layers).map(([first]) => first)).size, 1, "all four share the system's layer");
    t.same(layers["agent-serving"]!.slice(0, 2), layers["agent"], "the second target is the first with one layer more");
  });

  await t.test("the agent, by the line of the page", async (t) => {
    const way = await forwarder(t, engine.bridgeAddress);
    const url = `https://${engine.bridgeAddress}:${way.port}`;
    const cloud = await TestCloud.start(t, { tls: true, args: ["--url", url] });
    way.to(cloud.port);
    const made = await cloud.enroll("lab");
    const line = made.commands.find((command) => command.title === "Docker")!.text;
    t.match(line, / --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs \/tmp /);
    t.match(
      made.commands.filter((command) => command.text.includes("docker.sock")),
      [{ note: /root/ }],
      "the Engine's socket is a line of its own, with a warning",
    );

    const store = openDir(t, "store");
    writeFileSync(join(store, "table.csv"), "id,name\n1,ada\n");
    const here = openDir(t, "line");
    const shell = (text: string) =>
      promisify(execFile)("sh", ["-c", text], { cwd: here, env: cleanEnv({ DOCKER_HOST: `unix://${engine.socket}` }) });
    const run = line.replace("docker run", `docker run --user ${USER} -v ${store}:/data:ro`);
    await t.rejects(shell(run), /agent\.yaml/, "without a configuration docker says what is missing");
    writeFileSync(
      join(here, "agent.yaml"),
      `stores: [{ id: data, kind: fs, root: /data }]
policy:
  commands: ["artifact.*"]
  stores: [{ store: data, read: ["**"] }]
  release: { metadata: true, previews: { rows: 10 }, raw: true }
  ceilings: { concurrentRuns: 0, concurrentSteps: 0, stepTimeoutMs: 0, stepsPerRun: 0, uploadBytes: 0, streams: 8 }
`,
    );
    await docker("rm", "--force", "sallyport-agent").catch(() => undefined);
    await shell(run);
    const agent = await cloud.connected().catch(async (cause: unknown) => {
      throw new Error(await docker("logs", "sallyport-agent"), { cause });
    });
    t.equal(agent.pool.name, "lab");
    const files = "/v1/pools/lab/stores/data";
    const list = async () =>
      (await cloud.api.json<{ entries: ArtifactEntry[] }>(`${files}/artifacts?path=`)).entries.map(({ path }) => path);
    t.same(await list(), ["table.csv"]);
    const content = await cloud.api.call(`${files}/content?path=table.csv`);
    t.equal(content.body.toString(), "id,name\n1,ada\n");

    const inside = (code: string) => docker("exec", "sallyport-agent", "/usr/bin/node", "-p", code);
    const status = (await inside(`require("fs").readFileSync("/proc/1/status", "utf8")`)).split("\n");
    const field = (name: string) => status.find((row) => row.startsWith(`${name}:`))?.split(/\s+/)[1];
    t.equal(field("Name"), "tini", "the first process is the init");
    t.equal(field("Uid"), "54321");
    t.equal(Number(`0x${field("CapEff")}`), 0, "no capability");
    t.equal(Number(`0x${field("CapBnd")}`), 0, "and none to be had");
    t.equal(field("NoNewPrivs"), "1");
    t.match(await inside(`try { fs.writeFileSync("/opt/x", "") } catch (e) { e.code }`), /EROFS|EACCES/);
    t.match(await inside(`String(process.env.HOME)`), /^(undefined|\/)$/, "no home is needed");
    // an orphan, whose parent ended first, is the init's to reap
    const script = `const c = require("child_process").spawn(process.execPath, ["-e", "setTimeout(() => {}, 300)"], { detached: true, stdio: "ignore" }); c.unref(); c.pid`;
    const orphan = await inside(script);
    await waitFor(
      "the init to reap an orphan",
      async () => (await inside(`fs.existsSync("/proc/${orphan}")`)) === "false",
    );

    t.match(await docker("exec", "sallyport-agent", "sallyport-agent", "ready"), /link is up/);
    t.match(await docker("exec", "sallyport-agent", "sallyport-agent", "ps"), /./, "its health check's command");
    const began = performance.now();
    await docker("stop", "sallyport-agent");
    t.ok(performance.now() - began < 9_000, "stops by itself, not by force");
    t.equal(await docker("inspect", "--format", "{{.State.ExitCode}}", "sallyport-agent"), "0", "cleanly");
    await waitFor("disconnected", async () => (await cloud.agent(agent.name)).state === "disconnected");
    // another container on the same volume, without the secret
    await docker("rm", "sallyport-agent");
    await shell(run.replace(/ -e SALLYPORT_(URL|ENROLL_SECRET)=\S+/g, ""));
    t.equal((await cloud.connected(agent.name)).id, agent.id, "the volume is its identity");
    t.same(await list(), ["table.csv"]);
    await docker("rm", "--force", "sallyport-agent");
  });

  await t.test("the quickstart: control plane, agent and store on one network", async (t) => {
    const compose = new Composition(engine.socket, join(repository, "packaging/compose/quickstart.yaml"));
    for (const [name, service] of Object.entries(compose.services)) {
      t.match(service, { read_only: true, cap_drop: ["ALL"], security_opt: ["no-new-privileges:true"] }, name);
      t.notMatch(JSON.stringify(service), /password|docker\.sock|privileged"/i, `${name}: no password, no Engine`);
    }
    await compose.up();
    const url = `https://localhost:${await compose.port("cloud", 8443)}`;
    const ca = join(openDir(t, "ca"), "ca.crt");
    await docker("cp", `${compose.container("cloud")}:/var/lib/sallyport-cloud/data/tls/ca.crt`, ca);
    const api = new TestApi(url, readFileSync(ca, "utf8"));
    const page = await api.call("/", { headers: { accept: "text/html" } });
    t.equal(page.status, 200);
    t.match(page.body.toString(), /<div id="root">/, "the page is in the image");
    await api.signIn(await docker("exec", compose.container("cloud"), "sallyport-cloud", "admin", "reset"));
    const cloud = new CloudClient(url, api);
    const agent = await cloud.connected();
    t.match(agent, { name: "quickstart", pool: { name: "quickstart" } });

    // the engine `process`: a shell is there
    const sample = join(repository, "packaging/demo/sample/pipelines/digits.pipeline.json");
    const run = await api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "quickstart",
        pipeline: JSON.parse(readFileSync(sample, "utf8")) as PipelineInput,
        params: { epochs: 2, hidden: 16 },
      },
    });
    const ended = await waitFor(
      "the run to end",
      async () => {
        const now = await api.json<RunDetail>(`/v1/runs/${run.id}`);
        return TERMINAL.includes(now.state) && now;
      },
      { timeoutMs: 120_000 },
    );
    t.equal(ended.state, "succeeded", ended.error?.message ?? "the sample's pipeline ran");

    // and the program that serves: the very model that the run made
    const model = ended.attempts.flatMap((one) => one.outputs).find((one) => one.name === "model.onnx")!;
    const { id } = await api.json<{ id: string }>("/v1/deployments", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "quickstart",
        name: "digits",
        spec: {
          model: { store: "sample", path: model.path, digest: model.digest },
          engine: "process",
          resources: { cpus: 0.5, memoryBytes: 268_435_456 },
        },
      },
    });
    let seen: unknown;
    await waitFor(
      "the model to be served",
      async () => {
        const now = await api.json<{ state: string }>(`/v1/deployments/${id}`);
        seen = now;
        return now.state === "available";
      },
      { timeoutMs: 60_000 },
    ).catch((cause: unknown) => {
      throw new Error(`not served: ${JSON.stringify(seen)}`, { cause });
    });
    const inputs = [{ name: "pixels", shape: [1, 64], datatype: "FP32", data: Array.from({ length: 64 }, () => 0.5) }];
    const path = "/v2/models/digits/infer";
    const predicted = await api.call(`/v1/deployments/${id}/request?path=${path}`, {
      headers: { "content-type": "application/json" },
      body: Buffer.from(JSON.stringify({ inputs })),
    });
    t.equal(predicted.status, 200, predicted.body.toString().slice(0, 300));

    await compose.up();
    t.match(
      await promisify(execFile)("docker", ["logs", compose.container("enrol")], {
        env: cleanEnv({ DOCKER_HOST: `unix://${engine.socket}` }),
      }),
      { stderr: /has joined the pool quickstart already/ },
      "up again: nobody enrols",
    );
    await cloud.connected("quickstart");
    t.equal((await cloud.agents()).length, 1);
    for (const name of Object.keys(compose.services)) await docker("rm", "--force", compose.container(name));
  });

  await t.test("serving, alone", async (t) => {
    const models = openDir(t, "models");
    mkdirSync(join(models, "m"));
    const file = join(models, "m/model.onnx");
    writeFileSync(file, arithmetic());
    const token = "serving-token-of-a-test";
    const confined = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp"];
    const model = ["--model", "/m/model.onnx", "--name", "sums", "--model-version", "1"];
    await docker(
      ...["run", "--detach", "--name", "serving", "--user", USER, ...confined, "-v", `${join(models, "m")}:/m:ro`],
      ...["--env", `SALLYPORT_SERVING_TOKEN=${token}`, "--publish", "127.0.0.1::8080", ids.serving],
      ...[...model, "--host", "0.0.0.0", "--port", "8080"],
    );
    const at = `http://${(await docker("port", "serving", "8080/tcp")).split("\n")[0]}`;
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
    await waitFor("it to be ready", async () => (await fetch(`${at}/v2/health/ready`, { headers })).status === 200);
    const pair = (name: string, data: number[]) => ({ name, datatype: "FP32", shape: [1, 2], data });
    const answer = await fetch(`${at}/v2/models/sums/infer`, {
      method: "POST",
      headers,
      body: JSON.stringify({ inputs: [pair("a", [1, 2]), pair("b", [3, 4])] }),
    });
    t.match(await answer.json(), { outputs: [{ name: "sum", data: [4, 6] }] });
    await docker("stop", "serving");
    t.equal(await docker("inspect", "--format", "{{.State.ExitCode}}", "serving"), "0");
    await docker("rm", "serving");
    await t.rejects(docker("run", "--rm", ids.serving, "--model"), { code: 64 }, "its exit codes pass the init");
  });
});
