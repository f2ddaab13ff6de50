// What people get wrong, at the API and at the command line: each its own code and a sentence that names thing, cause
// and fix, with a request id; nothing hangs, nothing is lost.
import { randomUUID } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import type { RunDetail } from "../../cloud/http/api.ts";
import { makeAuthority } from "../support/certificates.ts";
import { entryFile, runProgram, tempDir, waitFor } from "../support/launcher.ts";
import { startS3 } from "../support/servers.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, connectAgent, TERMINAL, TestCloud } from "../support/stack.ts";

t.test("bad input has a code, a cause and a fix", { skip: needs("s3"), timeout: 180_000 }, async (t) => {
  const s3 = await startS3(t, { tls: true });
  const bucket = await s3.bucket();
  const cloud = await TestCloud.start(t);
  const store = tempDir(t, "store");
  mkdirSync(join(store, "open"));
  mkdirSync(join(store, "closed"));
  writeFileSync(join(store, "open/a.txt"), "hello");
  writeFileSync(join(store, "closed/b.txt"), "hidden");
  writeFileSync(
    join(store, "open/step.mjs"),
    "const [mode] = process.argv.slice(2);\nif (mode === 'fail') { console.error('no such column: price'); process.exit(3); }\nif (mode === 'hang') setInterval(() => {}, 1000);\n",
  );
  const secrets = tempDir(t, "secrets");
  writeFileSync(join(secrets, "wrong"), "this-is-not-the-key");
  const otherCa = makeAuthority(tempDir(t, "other-ca")).caFile;
  const s3Store = (id: string, ca: string, key: string) =>
    `  - { id: ${id}, kind: s3, endpoint: ${s3.endpoint}, region: ${s3.region}, bucket: ${bucket}, pathStyle: true, ca: ${ca}, accessKeyId: ${s3.accessKeyId}, secretAccessKey: "${key}" }\n`;
  const agent = await connectAgent(t, cloud, "lab", {
    config: `
stores:
  - { id: box, kind: fs, root: ${store} }
${s3Store("badkey", s3.caFile!, `\${file:${join(secrets, "wrong")}}`)}${s3Store("badca", otherCa, `\${file:${join(secrets, "wrong")}}`)}${s3Store("nosecret", s3.caFile!, `\${file:${join(secrets, "absent")}}`)}
programs: { node: { path: ${process.execPath} } }
policy:
  ${CEILINGS}
  commands: ["artifact.list", "artifact.stat", "artifact.preview", "artifact.read", "pipeline.run", "run.*"]
  engines: [process]
  programs: [node]
  stores:
    - { store: box, read: ["open/**"], write: ["runs/**"] }
    - { store: badkey, read: ["**"] }
    - { store: badca, read: ["**"] }
    - { store: nosecret, read: ["**"] }
  release: { metadata: true, previews: { rows: 10 }, logs: true, raw: [{ store: box, paths: ["open/**"] }] }
`,
  });
  const stores = "/v1/pools/lab/stores";

  await t.test("at the API", async (t) => {
    const cases: [what: string, path: string, status: number, code: string, names: RegExp][] = [
      ["unknown store", `${stores}/nowhere/artifacts?path=`, 404, "STORE_UNKNOWN", /nowhere/],
      ["unknown pool", `/v1/pools/nowhere/stores/box/artifacts?path=`, 404, "NOT_FOUND", /nowhere/],
      ["dot segments", `${stores}/box/stat?path=open/../closed/b.txt`, 400, "PATH_INVALID", /\.\./],
      ["encoded dot segments", `${stores}/box/stat?path=open%2F%2e%2e%2Fclosed%2Fb.txt`, 400, "PATH_INVALID", /\.\./],
      [
        "doubly encoded dot segments",
        `${stores}/box/stat?path=open%252F%252e%252e%252Fclosed`,
        400,
        "PATH_INVALID",
        /%2/i,
      ],
      ["NUL", `${stores}/box/stat?path=open%00a`, 400, "PATH_INVALID", /path|segment/i],
      ["missing file", `${stores}/box/stat?path=open/none.txt`, 404, "ARTIFACT_NOT_FOUND", /open\/none\.txt/],
      ["not granted", `${stores}/box/preview?path=closed/b.txt`, 403, "POLICY_DENIED", /closed\/b\.txt/],
      ["wrong credentials of the store", `${stores}/badkey/artifacts?path=`, 502, "STORE_DENIED", /badkey/],
      ["wrong CA of the store", `${stores}/badca/artifacts?path=`, 502, "STORE_TLS", /badca/],
      ["missing secret", `${stores}/nosecret/artifacts?path=`, 422, "SECRET_UNKNOWN", /absent/],
      ["wrong type", `${stores}/box/artifacts?path=&limit=many`, 422, "INPUT_INVALID", /limit/],
      ["unknown route", "/v1/nothing", 404, "NOT_FOUND", /\/v1\/nothing/],
    ];
    for (const [what, path, status, code, names] of cases) {
      const problem = await cloud.api.problem(path);
      t.match({ status: problem.status, code: problem.code }, { status, code }, what);
      t.match(problem.contentType, /application\/problem\+json/, `${what}: problem+json`);
      t.match(
        `${problem.detail} ${JSON.stringify(problem.errors ?? "")}`,
        names,
        `${what}: names it: ${problem.detail}`,
      );
      t.ok(problem.requestId.length > 0, `${what}: request id`);
      t.notMatch(problem.detail, /at .*\.ts:\d+|node_modules/, `${what}: no stack`);
    }
    const denied = await cloud.api.problem(`${stores}/box/content?path=open/new.txt`, {
      method: "PUT",
      body: Buffer.from("x"),
    });
    t.match(
      denied,
      { code: "POLICY_DENIED", fix: /policy/ },
      "a kind that the policy does not allow names the rule and the fix",
    );
    const unknownField = await cloud.api.problem("/v1/enrollments", { json: { pool: "lab", colour: "red" } });
    t.match(unknownField, { code: "INPUT_INVALID", status: 422 });
    t.match(JSON.stringify(unknownField.errors), /colour/);
    const noToken = await cloud.api.problem("/v1/agents", { headers: { authorization: "Bearer spt_wrong" } });
    t.equal(noToken.code, "UNAUTHENTICATED");
  });

  const start = (steps: object[]) =>
    cloud.api.json<{ id: string }>("/v1/runs", {
      headers: { "idempotency-key": randomUUID() },
      json: { pool: "lab", pipeline: { name: "p", outputs: { store: "box" }, steps } },
    });
  const ended = (id: string) =>
    waitFor("the run to end", async () => {
      const run = await cloud.api.json<RunDetail>(`/v1/runs/${id}`);
      return TERMINAL.includes(run.state) && run;
    });
  const inputs = { code: { store: "box", path: "open/step.mjs" } };

  await t.test("pipelines", async (t) => {
    const cycle = await cloud.api.problem("/v1/runs", {
      json: {
        pool: "lab",
        pipeline: {
          name: "p",
          outputs: { store: "box" },
          steps: [
            { name: "a", program: "node", needs: ["b"] },
            { name: "b", program: "node", needs: ["a"] },
          ],
        },
      },
    });
    t.match(cycle, { code: "PIPELINE_INVALID", detail: /a -> b -> a/ });

    const failed = await ended(
      (await start([{ name: "a", program: "node", args: ["${inputs.code}", "fail"], inputs }])).id,
    );
    t.match(failed, {
      state: "failed",
      error: { code: "STEP_FAILED", message: /a.*3|3.*a/ },
      attempts: [{ exitCode: 3, state: "failed" }],
    });
    const slow = await ended(
      (await start([{ name: "a", program: "node", args: ["${inputs.code}", "hang"], inputs, timeoutMs: 1000 }])).id,
    );
    t.match(slow, { state: "failed", error: { code: "STEP_TIMED_OUT" } });
    const missing = await ended(
      (await start([{ name: "a", program: "node", args: ["${inputs.code}", "ok"], inputs, outputs: { model: {} } }]))
        .id,
    );
    t.match(missing, { state: "failed", error: { code: "STEP_OUTPUT_MISSING", message: /model/ } });
    const program = await ended((await start([{ name: "a", program: "bash" }])).id);
    t.match(
      program,
      { state: "failed", error: { code: /POLICY_DENIED|PROGRAM_UNKNOWN/, message: /bash/ } },
      "a refused command is the run's failure, and says why",
    );
  });

  const home = tempDir(t, "home");
  const cli = (args: string[], input?: string) =>
    runProgram(t, {
      name: "sallyport",
      args: [entryFile("cloud/cli/main"), ...args],
      env: { HOME: home, XDG_CONFIG_HOME: join(home, "config") },
      ...(input === undefined ? {} : { input }),
    });

  await t.test("at the command line", async (t) => {
    const early = await cli(["agent", "ls"]);
    t.match(early, { code: 4, stderr: /login/ }, "not signed in: 4, and how to");
    t.match(await cli(["login", cloud.url], `${cloud.api.token}\n`), { code: 0 });
    const agents = await cli(["agent", "ls", "-o", "json"]);
    t.equal(agents.code, 0, agents.stderr);
    t.match(JSON.parse(agents.stdout), [{ state: "connected" }]);
    t.match((await cli(["artifact", "ls", "lab/box/open"])).stdout, /a\.txt/);
    const out = join(home, "a.txt");
    t.equal((await cli(["artifact", "get", "lab/box/open/a.txt", out])).code, 0);
    t.equal(readFileSync(out, "utf8"), "hello");
    for (const [args, code, says] of [
      [["artifact", "get", "lab/box/open/none.txt", out], 3, /open\/none\.txt/],
      [["artifact", "get", "lab/box/closed/b.txt", out], 5, /policy/i],
      [["artifact", "ls", "lab/nowhere"], 3, /nowhere/],
      [["artifact", "frobnicate"], 2, /frobnicate/],
      [["artifact", "get"], 2, /missing|usage/i],
      [["run", "logs", "run_0000"], 2, /run/i],
    ] as const) {
      const result = await cli([...args]);
      t.equal(result.code, code, `sallyport ${args.join(" ")}: ${result.stderr.trim()}`);
      t.match(result.stderr, says);
      t.equal(result.stdout, "", "nothing on stdout");
    }
    t.equal(readFileSync(out, "utf8"), "hello", "a failed get leaves the file that was there");
  });

  await t.test("an offline agent", async (t) => {
    await agent.program.stop();
    await waitFor("disconnected", async () => (await cloud.agent()).state === "disconnected");
    const began = performance.now();
    const look = await cloud.api.problem(`${stores}/box/artifacts?path=`);
    t.match(look, { code: "AGENT_OFFLINE", status: 503, fix: /.+/ });
    t.ok(performance.now() - began < 2_000, "an interactive command fails at once");
    t.equal((await cli(["artifact", "ls", "lab/box"])).code, 7);
    const run = await cloud.api.json<RunDetail>(
      `/v1/runs/${(await start([{ name: "a", program: "node", args: ["${inputs.code}", "ok"], inputs }])).id}`,
    );
    t.match(
      run,
      { state: "queued", waiting: { code: "AGENT_OFFLINE", text: /lab/, fix: /.+/ } },
      "a durable one waits and says why",
    );
    agent.start();
    t.equal((await ended(run.id)).state, "succeeded", "and is done when the agent is back");
  });
});
