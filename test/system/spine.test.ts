// The main job on real partners: artifacts in a real S3 server, its key in a real Vault, a run, its log, and then a
// search for every secret in everything the agent sent and in all that both programs left behind.
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { readNdjson, type ArtifactEntry, type LogRecord, type Preview } from "@sallyport/protocol";
import type { RunDetail } from "../../cloud/http/api.ts";
import { CanaryScanner, makeCanary, scanBytes, scanDirectory, type Canary } from "../support/canaries.ts";
import { tempDir, waitFor } from "../support/launcher.ts";
import { startRecordingProxy } from "../support/recording-proxy.ts";
import { startS3, startVault } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud } from "../support/stack.ts";
import { makeAuthority } from "../support/certificates.ts";

const sha256 = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

t.test(
  "artifacts, a run and its log on a real S3 server and a real Vault",
  { skip: needs("s3", "vault"), timeout: 180_000 },
  async (t) => {
    const [s3, vault] = await Promise.all([startS3(t, { tls: true }), startVault(t, { tls: true })]);
    const bucket = await s3.bucket();
    const stepSecret = makeCanary("step secret", { plain: false });
    const canaries: Canary[] = [
      { name: "s3 secret access key", value: s3.secretAccessKey },
      { name: "vault token", value: vault.token },
      stepSecret,
    ];
    await vault.writeSecret("ml/s3", { access: s3.accessKeyId, secret: s3.secretAccessKey });
    await vault.writeSecret("ml/tracker", { token: stepSecret.value });

    // objects are plain files behind this server: put them there as a colleague would have
    const lake = join(s3.dataDir, bucket);
    mkdirSync(join(lake, "team/data"), { recursive: true });
    mkdirSync(join(lake, "secret-corner"), { recursive: true });
    writeFileSync(join(lake, "secret-corner/x.txt"), "not for the cloud");
    writeFileSync(join(lake, "team/data/table.csv"), 'id,name,score\n1,ada,0.5\n2,grace,0.75\n3,"edsger, w",1\n');
    writeFileSync(join(lake, "team/data/blob.bin"), randomBytes(3_000_000));
    writeFileSync(
      join(lake, "team/data/step.mjs"),
      `import { readFileSync, writeFileSync } from "node:fs";
const [table, out] = process.argv.slice(2);
const rows = readFileSync(table, "utf8").trim().split("\\n").length - 1;
console.log("rows", rows);
console.log("the token is " + process.env.TRACKER_TOKEN);
console.error("base64 of it: " + Buffer.from("x" + process.env.TRACKER_TOKEN).toString("base64"));
for (let i = 1; i <= 200; i++) console.log("line " + i);
writeFileSync(out, JSON.stringify({ rows }));
`,
    );

    const cloud = await TestCloud.start(t, { tls: true });
    // what the agent sends passes a proxy that ends its TLS and records: the agent is told to trust the proxy's CA
    const authority = makeAuthority(tempDir(t, "proxy-ca"));
    const proxy = await startRecordingProxy(t, {
      target: { port: cloud.port, ca: cloud.ca!, servername: "127.0.0.1" },
      tls: { cert: readFileSync(authority.certFile), key: readFileSync(authority.keyFile) },
    });
    const tokenFile = join(tempDir(t, "vault-token"), "token");
    writeFileSync(tokenFile, `${vault.token}\n`, { mode: 0o600 });
    const agent = await connectAgent(t, cloud, "lab", {
      url: `https://127.0.0.1:${proxy.port}`,
      ca: authority.caFile,
      config: `
secrets:
  vault: { address: ${vault.address}, ca: ${vault.caFile}, token: "\${file:${tokenFile}}" }
  named: { tracker: "\${vault:secret/ml/tracker#token}" }
stores:
  - { id: lake, kind: s3, endpoint: ${s3.endpoint}, region: ${s3.region}, bucket: ${bucket}, pathStyle: true, ca: ${s3.caFile},
      accessKeyId: "\${vault:secret/ml/s3#access}", secretAccessKey: "\${vault:secret/ml/s3#secret}" }
programs:
  node: { path: ${process.execPath} }
policy:
  ${CEILINGS}
  commands: ["artifact.*", "pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  secrets: [tracker]
  stores:
    - { store: lake, read: ["team/**", "runs/**"], write: ["runs/**", "team/inbox/**"], delete: ["team/inbox/**"] }
  release: { metadata: true, previews: { rows: 100 }, logs: true, raw: [{ store: lake, paths: ["team/**"] }] }
`,
    });
    const files = "/v1/pools/lab/stores/lake";
    const at = (path: string) => `path=${encodeURIComponent(path)}`;
    const api = cloud.api;

    await t.test("look, fetch, write, delete", async (t) => {
      const top = await api.json<{ entries: ArtifactEntry[] }>(`${files}/artifacts?path=`);
      t.ok(
        top.entries.some((entry) => entry.name === "team"),
        "what may be read is listed",
      );
      t.notOk(
        top.entries.some((entry) => entry.name === "secret-corner"),
        "what may not be read is not",
      );
      const { preview } = await api.json<{ preview: Preview }>(`${files}/preview?${at("team/data/table.csv")}`);
      t.match(preview, {
        type: "table",
        totalRows: 3,
        rows: [
          [1, "ada", 0.5],
          [2, "grace", 0.75],
          [3, "edsger, w", 1],
        ],
      });

      const blob = readFileSync(join(lake, "team/data/blob.bin"));
      const whole = await api.call(`${files}/content?${at("team/data/blob.bin")}`);
      t.equal(sha256(whole.body), sha256(blob), "the whole object has its digest");
      const part = await api.call(`${files}/content?${at("team/data/blob.bin")}`, {
        headers: { range: "bytes=1000000-1000099" },
      });
      t.equal(part.status, 206);
      t.same(part.body, blob.subarray(1_000_000, 1_000_100), "a range is the range");
      const stat = await api.json<{ digest: string }>(`${files}/stat?${at("team/data/blob.bin")}&digest=true`);
      t.equal(stat.digest, sha256(blob));

      const content = randomBytes(200_000);
      const put = await api.call(`${files}/content?${at("team/inbox/a.bin")}`, {
        method: "PUT",
        body: content,
        headers: { "if-none-match": "*" },
      });
      t.equal(put.status, 201);
      t.equal(put.json<{ digest: string }>().digest, sha256(content));
      t.same(readFileSync(join(lake, "team/inbox/a.bin")), content, "the store holds what was sent");
      t.equal(
        (
          await api.problem(`${files}/content?${at("team/inbox/a.bin")}`, {
            method: "PUT",
            body: content,
            headers: { "if-none-match": "*" },
          })
        ).code,
        "ARTIFACT_EXISTS",
      );
      t.equal((await api.call(`${files}/content?${at("team/inbox/a.bin")}`, { method: "DELETE" })).status < 300, true);
      t.equal((await api.problem(`${files}/stat?${at("team/inbox/a.bin")}`)).code, "ARTIFACT_NOT_FOUND");
    });

    await t.test("a run reads from S3, writes to S3, and its log is redacted", async (t) => {
      const run = await api.json<{ id: string }>("/v1/runs", {
        headers: { "idempotency-key": randomUUID() },
        json: {
          pool: "lab",
          pipeline: {
            name: "count",
            outputs: { store: "lake", prefix: "runs" },
            steps: [
              {
                name: "count",
                program: "node",
                args: ["${inputs.code}", "${inputs.table}", "${outputs.result.json}"],
                inputs: {
                  code: { store: "lake", path: "team/data/step.mjs" },
                  table: { store: "lake", path: "team/data/table.csv" },
                },
                outputs: { "result.json": { mediaType: "application/json" } },
                secrets: { TRACKER_TOKEN: "tracker" },
              },
            ],
          },
        },
      });
      const ended = await waitFor("the run to end", async () => {
        const now = await api.json<RunDetail>(`/v1/runs/${run.id}`);
        return TERMINAL.includes(now.state) && now;
      });
      t.match(
        ended,
        { state: "succeeded", attempts: [{ step: "count", exitCode: 0 }] },
        ended.error?.message ?? "no error",
      );
      const output = ended.attempts[0]!.outputs[0]!;
      t.equal(
        output.digest,
        sha256(readFileSync(join(lake, output.path))),
        "the reported digest is that of the stored object",
      );

      const response = await api.open(`/v1/runs/${run.id}/steps/count/logs?limit=10000`);
      const records: LogRecord[] = [];
      for await (const record of readNdjson(response)) records.push(record as LogRecord);
      const text = records.map((record) => ("gap" in record ? "GAP" : record.body.data)).join("\n");
      t.same(
        records.map((record) => ("gap" in record ? 0 : record.seq)),
        records.map((_, index) => index + 1),
        "numbers without a hole",
      );
      t.match(text, /rows 3/);
      t.match(text, /line 200/);
      t.match(text, /the token is \[redacted\]/);
      t.notMatch(text, stepSecret.value);
    });

    await t.test("no secret is found anywhere", async (t) => {
      // make it try: an error of each store and a failing secret reference
      await api.problem(`${files}/stat?${at("team/missing")}`);
      await api.problem(`${files}/preview?${at("secret-corner/x.txt")}`);
      await agent.program.stop();
      await cloud.program.stop();
      const scanner = new CanaryScanner(canaries, "what the agent sent");
      let sentBytes = 0;
      await proxy.sent((bytes) => {
        sentBytes += bytes.length;
        scanner.write(bytes);
      });
      t.ok(sentBytes > 3_000_000, `${sentBytes} bytes of plaintext that the agent sent were searched`);
      const hits = [
        ...scanner.hits,
        ...[cloud.dir, agent.dir].flatMap((folder) => scanDirectory(folder, canaries)),
        ...[...cloud.programs, ...agent.programs].flatMap((program) =>
          scanBytes(program.output, canaries, `output of ${program.name}`),
        ),
      ];
      t.same(hits, []);
      t.ok(statSync(agent.state).isDirectory() && readdirSync(agent.state).length > 0, "there was something to search");

      // the search itself is able to find: the same scanner, over a planted secret
      const found = scanBytes(`xx${Buffer.from(vault.token).toString("base64")}`, canaries, "planted");
      t.not(found.length, 0, "a planted secret is found");
    });
  },
);
