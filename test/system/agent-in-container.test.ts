// The agent in its own image with the Engine's socket, by the page's line for it: steps and replicas are its siblings at the
// same Engine, reached on the internal network that it joins; a new container of the agent takes them over.
import { execFile } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { chmodSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import t from "tap";
import type { DeploymentDetail } from "../../cloud/http/api.ts";
import { arithmetic } from "../../packaging/serving/fixtures/onnx.ts";
import { buildImage } from "../support/built-image.ts";
import { docker as client } from "../support/compose.ts";
import { cleanEnv, tempDir, waitFor } from "../support/launcher.ts";
import { startDocker } from "../support/servers/docker.ts";
import { needs } from "../support/skip.ts";
import { TestCloud } from "../support/stack.ts";

t.setTimeout(300_000);

t.test(
  "an agent in a container serves by containers beside it",
  { skip: needs("docker"), timeout: 280_000 },
  async (t) => {
    const engine = await startDocker(t);
    const docker = (...args: string[]) => client(engine.socket, ...args);
    await buildImage(engine.socket, "agent");
    const serving = await buildImage(engine.socket, "serving");

    // Containers do not see this machine's loopback: the control plane is handed on to them at the bridge.
    let target = 0;
    const way = createServer((from) => {
      const to = connect(target, "127.0.0.1");
      for (const [one, other] of [
        [from, to],
        [to, from],
      ] as const) {
        one.on("error", () => other.destroy());
        one.on("close", () => other.destroy());
        one.pipe(other);
      }
    });
    await new Promise<void>((resolve) => way.listen(0, engine.bridgeAddress, resolve));
    t.teardown(() => way.close());
    const url = `https://${engine.bridgeAddress}:${(way.address() as { port: number }).port}`;
    const cloud = await TestCloud.start(t, { tls: true, args: ["--url", url] });
    target = cloud.port;

    const store = tempDir(t, "store");
    chmodSync(store, 0o755);
    const model = arithmetic();
    writeFileSync(join(store, "model.onnx"), model);
    const here = tempDir(t, "line");
    chmodSync(here, 0o755);
    writeFileSync(
      join(here, "agent.yaml"),
      `stores: [{ id: data, kind: fs, root: /data }]
engines: { docker: {} }
serving: { image: "${serving}" }
policy:
  commands: ["deployment.*", "artifact.*"]
  engines: [docker]
  stores: [{ store: data, read: ["**"] }]
  release: { metadata: true, logs: true, predict: true }
  ceilings: { streams: 8, deployments: 2, replicas: 2, cpus: 1, memoryBytes: 536870912 }
`,
    );
    const made = await cloud.enroll("lab");
    const line = made.commands.find(({ text }) => text.includes("docker.sock"))!.text;
    const run = line
      .replaceAll("/var/run/docker.sock:", `${engine.socket}:`)
      .replace("stat -c %g /var/run/docker.sock", `stat -c %g ${engine.socket}`)
      .replace("docker run", `docker run --user 54321:54321 -v ${store}:/data:ro`);
    const shell = (text: string) =>
      promisify(execFile)("sh", ["-c", text], { cwd: here, env: cleanEnv({ DOCKER_HOST: `unix://${engine.socket}` }) });
    await shell(run);
    await cloud.connected().catch(async (cause: unknown) => {
      throw new Error(await docker("logs", "sallyport-agent"), { cause });
    });

    const { id } = await cloud.api.json<{ id: string }>("/v1/deployments", {
      headers: { "idempotency-key": randomUUID() },
      json: {
        pool: "lab",
        name: "sum",
        spec: {
          model: {
            store: "data",
            path: "model.onnx",
            digest: `sha256:${createHash("sha256").update(model).digest("hex")}`,
          },
          engine: "docker",
          replicas: 2,
          resources: { cpus: 0.5, memoryBytes: 268_435_456 },
        },
      },
    });
    const available = async (adopted: boolean) => {
      let last: DeploymentDetail | undefined;
      return waitFor(
        `two ready replicas, adopted: ${adopted}`,
        async () => {
          last = await cloud.api.json<DeploymentDetail>(`/v1/deployments/${id}`);
          return (
            last.state === "available" &&
            last.observed!.replicas.every((one) => one.adopted === adopted && one.starts === 1)
          );
        },
        { timeoutMs: 90_000 },
      ).catch(async (cause: unknown) => {
        throw new Error(
          `${JSON.stringify(last?.observed)}\n${await docker("logs", "--tail", "30", "sallyport-agent")}`,
          { cause },
        );
      });
    };
    const ready = async () =>
      (await cloud.api.call(`/v1/deployments/${id}/request?method=GET&path=/v2/models/sum/ready`, { method: "POST" }))
        .status;
    await available(false);
    t.equal(await ready(), 200, "a request through the link reaches a replica on the internal network");
    const siblings = (await engine.docker.listContainers({ filters: { name: [id] } })).map((one) => one.Id).toSorted();
    t.equal(siblings.length, 2, "replicas are containers beside the agent's");

    // killed, and started as another container on the same volume: another member of the network
    await docker("rm", "--force", "sallyport-agent");
    await shell(run.replace(/ -e SALLYPORT_(URL|ENROLL_SECRET)=\S+/g, ""));
    await available(true);
    t.equal(await ready(), 200, "the new container of the agent reaches them, too");
    t.same(
      (await engine.docker.listContainers({ filters: { name: [id] } })).map((one) => one.Id).toSorted(),
      siblings,
      "they were taken over, not started anew",
    );
    await docker("rm", "--force", "sallyport-agent");
  },
);
