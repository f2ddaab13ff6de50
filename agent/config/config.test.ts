import { readFileSync } from "node:fs";
import { Command } from "commander";
import t from "tap";
import { parse } from "yaml";
import { ConnectorError } from "@sallyport/protocol";
import { policyCommands } from "../policy/cli.ts";
import { configCommands, loadFor, type ConfigSource } from "./cli.ts";
import { configJsonSchema, loadConfig, reload, showConfig } from "./index.ts";

const FULL = `
cloud: { url: https://cp.example, ca: /etc/cp.pem }
link:
  addresses: ["https://cp-2.example"]
  proxy: { url: "http://proxy.example:3128", user: app, password: "proxy-password-in-file" }
  clientCertificate: { cert: /etc/c.pem, key: /etc/c-key.pem }
state: /srv/agent
labels: { env: prod }
log: { level: debug }
secrets:
  vault: { address: "https://vault.example:8200", token: "\${file:/run/secrets/vault-token}", ca: /etc/vault.pem }
  named: { tracker-token: "\${vault:kv/ml/tracker#token}", literal: "plain-secret-in-file" }
stores:
  - { id: sample, kind: fs, root: /data }
  - { id: lake, kind: s3, endpoint: "https://s3.example", bucket: bkt, prefix: a/b/, accessKeyId: AKIALITERAL, secretAccessKey: "\${env:S3_SECRET}" }
programs:
  node: { path: /usr/bin/node, args: [--no-warnings], env: { MODE: fast, API_TOKEN: do-not-show-me } }
  trainer: { path: /bin/train, image: "reg.example/train@sha256:${"a".repeat(64)}" }
engines: { docker: {} }
serving:
  listen: "0.0.0.0:8470"
  advertise: https://models.example
  tls: { cert: /etc/s.pem, key: /etc/s-key.pem }
  process: { path: /opt/serving, args: [--quiet], env: { THREADS: "2", HF_TOKEN: do-not-show-me-either } }
  image: "sha256:${"b".repeat(64)}"
limits: { concurrentRuns: 2, servingCpus: 1.5 }
policy:
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["**"] }]
  programs: [node]
  engines: [process, docker]
  images: ["reg.example/ml/*"]
  networks: [tracker]
  secrets: [tracker-token]
  ceilings: { streams: 9, cpus: 0.5 }
  release: { predict: [digits], previews: { rows: 5 }, raw: [{ store: lake, paths: ["x/*"] }] }
`;
const load = (text: string | null, environment = {}) => loadConfig(text, "agent.yaml", environment);

t.test("the sample file is valid, says every default and equals having no file", (t) => {
  const text = readFileSync(new URL("../../packaging/agent.sample.yaml", import.meta.url), "utf8");
  t.strictSame(load(text).config, load(null).config);
  t.strictSame(load("").config, load(null).config);
  // Every field of the schema is named in it, so that a new one cannot be forgotten.
  const names = new Set<string>();
  const collect = (schema: unknown): void => {
    if (typeof schema !== "object" || schema === null) return;
    const { properties } = schema as { properties?: Record<string, unknown> };
    for (const name of Object.keys(properties ?? {})) names.add(name);
    Object.values(schema).forEach(collect);
  };
  collect(configJsonSchema());
  t.ok(names.size > 40);
  t.strictSame(
    [...names].filter((name) => !new RegExp(`\\b${name}\\b`).test(text) && name !== "sessionToken"),
    [],
  );
  t.end();
});

t.test("a full file", (t) => {
  const compiled = load(FULL, { SALLYPORT_URL: "https://other.example", SALLYPORT_LOG_LEVEL: "warn" });
  t.match(compiled.config, {
    cloud: { url: "https://other.example", ca: "/etc/cp.pem" },
    log: { level: "warn" },
    stores: [{ id: "sample" }, { id: "lake", region: "us-east-1", pathStyle: true, ca: null, sessionToken: null }],
    limits: { concurrentRuns: 2, concurrentSteps: 4, servingCpus: 1.5, replicas: 16 },
    programs: {
      node: { image: null },
      trainer: { image: `reg.example/train@sha256:${"a".repeat(64)}`, args: [], env: {} },
    },
    engines: { docker: { socket: "/var/run/docker.sock" } },
    serving: {
      listen: "0.0.0.0:8470",
      advertise: "https://models.example",
      tls: { cert: "/etc/s.pem", key: "/etc/s-key.pem" },
      process: { path: "/opt/serving", args: ["--quiet"], env: { THREADS: "2" } },
      image: `sha256:${"b".repeat(64)}`,
    },
  });
  t.equal(compiled.policy.previewRows, 5);
  t.equal(compiled.originOf(["cloud", "url"]), "environment SALLYPORT_URL");
  t.equal(compiled.originOf(["state"]), "agent.yaml:7");
  t.match(compiled.config.link, { proxy: { user: "app", ca: null }, noProxy: null });
  t.ok(compiled.warnings.some((w) => w.startsWith("link.proxy.url is http")));
  t.equal(compiled.originOf(["limits", "concurrentSteps"]), "default");
  const shown = showConfig(compiled, { origin: true });
  for (const hidden of [
    "plain-secret-in-file",
    "proxy-password-in-file",
    "AKIALITERAL",
    "do-not-show-me",
    "do-not-show-me-either",
  ])
    t.notMatch(shown, hidden);
  t.match(shown, /\$\{env:S3_SECRET\}/);
  t.match(shown, /url: https:\/\/other.example # environment SALLYPORT_URL/);
  t.match(shown, /listen: 0\.0\.0\.0:8470 # agent\.yaml:\d+\n/);
  t.match(shown, /socket: \/var\/run\/docker\.sock # default\n/);
  t.equal(
    compiled.originOf(["serving", "image"]),
    compiled.originOf(["serving", "listen"]).replace(/\d+$/, (n) => `${Number(n) + 4}`),
  );
  t.match(parse(shown), { serving: { process: { env: { THREADS: "2", HF_TOKEN: "********" } } } });
  t.match(parse(shown), { programs: { node: { env: { MODE: "fast", API_TOKEN: "********" } } } });
  t.ok(compiled.warnings.some((w) => w.startsWith("secrets.named.literal is written in the file")));
  t.end();
});

t.test("what is wrong is named: field, line, expectation, what came; never a secret", (t) => {
  const cases: [string, string, RegExp][] = [
    [
      "an unknown field",
      "state: /x\nstorez: []\n",
      /^agent\.yaml, line 2: storez is not a known field; known here: cloud, link, state/,
    ],
    [
      "deep unknown field",
      FULL.replace("read: [", "raed: ["),
      /line [23]\d: policy\.stores\[0\]\.raed is not a known field; known here: store, read, write, delete/,
    ],
    [
      "unknown field of a store",
      FULL.replace("root: /data", "root: /data, bucket: b"),
      /stores\[0\]\.bucket is not a known field; known here: id, kind, root/,
    ],
    [
      "a wrong type",
      FULL.replace("concurrentRuns: 2", "concurrentRuns: two"),
      /limits\.concurrentRuns: expected a number, got "two"/,
    ],
    [
      "a wrong kind",
      FULL.replace("kind: fs", "kind: ftp"),
      /stores\[0\]\.kind: expected one of the known kinds: fs, s3/,
    ],
    ["a missing field", FULL.replace(", root: /data", ""), /stores\[0\]\.root: expected text, got nothing/],
    ["a relative path", FULL.replace("/srv/agent", "srv"), /line 7: state: expected an absolute path, got "srv"/],
    ["a bad name", FULL.replace("id: sample", "id: Sample!"), /stores\[0\]\.id: expected 1 to 63/],
    [
      "a password in an address",
      FULL.replace("https://s3.example", "https://u:hunter22hunter22@s3.example"),
      /stores\[1\]\.endpoint: expected an address without user and password/,
    ],
    [
      "a dot in a pattern",
      FULL.replace('["**"]', '["../x"]'),
      /policy\.stores\[0\]\.read\[0\]: expected a path pattern that has the segment `\.\.`/,
    ],
    [
      "an unknown store",
      FULL.replace("store: lake, read", "store: lakes, read"),
      /policy\.stores\[0\]\.store: expected the id of a store: sample, lake, got "lakes"/,
    ],
    ["an unknown program", FULL.replace("[node]", "[nodes]"), /policy\.programs\[0\].*the name of a program: node/],
    [
      "an unknown provider",
      FULL.replace("${env:S3_SECRET}", "${exec:S3}"),
      /secretAccessKey: expected text that has a reference to an unknown provider/,
    ],
    ["a reference where none is taken", FULL.replace("bucket: bkt", 'bucket: "${env:X}"'), /stores\[1\]\.bucket/],
    [
      "Vault's token from Vault",
      FULL.replace("${file:/run/secrets/vault-token}", "${vault:a/b#c}"),
      /Vault's token cannot come from Vault/,
    ],
    [
      "Vault used, not set",
      FULL.replace(/ {2}vault: .*\n/, ""),
      /secrets\.named\.tracker-token: expected a reference to a configured provider/,
    ],
    [
      "an engine that is not configured",
      FULL.replace("engines: { docker: {} }\n", ""),
      /policy\.engines\[1\]: expected an engine: process, got "docker"/,
    ],
    [
      "an image by a tag",
      FULL.replace(/reg\.example\/train@sha256:a+/, "reg.example/train:1"),
      /programs\.trainer\.image: expected an image by digest/,
    ],
    [
      "a prefix of a registry's name",
      FULL.replace("reg.example/ml/*", "reg.example*"),
      /policy\.images\[0\]: expected an image/,
    ],
    [
      "a relative socket",
      FULL.replace("docker: {}", "docker: { socket: x }"),
      /engines\.docker\.socket: expected an absolute/,
    ],
    [
      "a certificate without key",
      FULL.replace(", key: /etc/s-key.pem", ""),
      /serving\.tls\.key: expected text, got nothing/,
    ],
    [
      "a secret for what serves",
      FULL.replace("do-not-show-me-either", '"${file:/x}"'),
      /serving\.process\.env\.HF_TOKEN: expected plain text/,
    ],
    ["another scheme", "link: { url: 'ws://h' }", /link\.url: expected an address that begins with tls:/],
    [
      "NATS in the clear",
      "link: { url: 'nats://h.example', nats: { user: a, password: hunter2hunter2 } }",
      /link\.url: expected tls:/,
    ],
    ["a login for no server", "link: { nats: { name: a } }", /link\.url: expected the NATS server/],
    [
      "a user without password",
      "link: { url: 'tls://h', nats: { user: a } }",
      /link\.nats\.password: expected user and password/,
    ],
    [
      "two logins",
      "link: { url: 'tls://h', nats: { name: a, token: hunter2hunter2, nkey: hunter2hunter2 } }",
      /link\.nats\.nkey: expected no other/,
    ],
    [
      "a token tells no name",
      "link: { url: 'tls://h', nats: { token: hunter2hunter2 } }",
      /link\.nats\.name: expected the agent's part/,
    ],
    ["a subject in a name", "link: { url: 'tls://h', nats: { name: 'a.>' } }", /link\.nats\.name: expected 1 to 64/],
    ["no cores", FULL.replace("servingCpus: 1.5", "servingCpus: 0"), /limits\.servingCpus: expected a number above 0/],
    ["an id twice", FULL.replace("id: lake", "id: sample"), /an id that no other store has/],
    ["not YAML", "a: [1\nsecret: hunter2hunter2", /^agent\.yaml, line \d+: the file: expected YAML/],
    ["a key twice", "state: /a\nstate: /b\n", /line 2: the file: expected YAML \(fault: duplicate key\)/],
    ["a list", "- 1\n", /the file: expected a mapping, got a list/],
    [
      "a secret of the wrong type",
      FULL.replace("AKIALITERAL", "[hunter2hunter2]"),
      /accessKeyId: expected text, got a list/,
    ],
  ];
  for (const [name, text, expected] of cases) {
    let error: unknown;
    try {
      load(text);
    } catch (caught) {
      error = caught;
    }
    t.ok(error instanceof ConnectorError && error.code === "CONFIG_INVALID", name);
    t.match((error as Error).message, expected, name);
    t.notMatch(JSON.stringify((error as ConnectorError).toBody()), /hunter2/, name);
  }
  t.throws(() => load(null, { SALLYPORT_LOG_LEVEL: "loud" }), {
    code: "CONFIG_INVALID",
    message: /SALLYPORT_LOG_LEVEL/,
  });
  t.throws(
    () =>
      load(
        `a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &c [*b,*b,*b,*b,*b,*b,*b]\n`,
      ),
    { code: "CONFIG_INVALID" },
  );
  t.end();
});

t.test("the link over NATS", (t) => {
  const { config, warnings } = load(
    "link: { url: 'wss+nats://h', nats: { user: a, password: '${env:P}' } }\npolicy: { commands: ['*'] }",
  );
  t.match(config.link, {
    url: "wss+nats://h",
    nats: { name: null, prefix: null, user: "a", password: "${env:P}", creds: null },
  });
  t.strictSame(warnings, []);
  t.match(load("link: { url: 'nats://127.0.0.1:4222', nats: { name: a } }").config.link.nats, { name: "a" });
  t.match(
    showConfig(load("link: { url: 'tls://h', nats: { name: a, token: hunter2hunter2 } }"), { origin: false }),
    /token: "?\*\*\*/,
  );
  t.equal(load("").config.link.url, null);
  t.end();
});

t.test("where endpoints listen", (t) => {
  const listen = (text: string) => load(`serving: { listen: ${JSON.stringify(text)} }`).config.serving.listen;
  for (const text of ["127.0.0.1:8470", "0.0.0.0:80", "[::1]:8470", "[::]:0", "localhost:1", "models.internal:65535"])
    t.equal(listen(text), text);
  const wrong = [
    "8470",
    ":8470",
    "127.0.0.1",
    "127.0.0.1:",
    "127.0.0.1:65536",
    "::1:8470",
    "u@h:80",
    "h:80/x",
    "http://h:80",
    "a b:80",
  ];
  for (const text of wrong)
    t.throws(
      () => listen(text),
      { code: "CONFIG_INVALID", message: /serving\.listen: expected an address and port/ },
      text,
    );
  t.end();
});

t.test("what nothing can start, and what crosses the network in the clear, is said", (t) => {
  const warned = (text: string) => load(text).warnings.map((w) => w.split(" ")[0]);
  const image = `"sha256:${"a".repeat(64)}"`;
  const serving = (more: string) => `policy: { commands: ["*"] }\nserving: { process: { path: /x }, ${more} }`;
  t.strictSame(
    warned(`policy: { commands: ["*"] }\nprograms: { a: { path: /x, image: ${image} } }\nserving: { image: ${image} }`),
    ["programs.a.image", "serving.image"],
  );
  t.strictSame(warned(FULL.replace(/ {2}named: .*\n/, "").replace(/ {2}secrets: .*\n/, "")), [
    "link.proxy.url",
    "link.proxy.password",
    "stores[1].accessKeyId",
  ]);
  t.strictSame(warned(serving(`listen: "0.0.0.0:1"`)), ["serving.listen"]);
  for (const safe of [`listen: "[::1]:1"`, `listen: "127.0.0.1:1"`, `listen: "0.0.0.0:1", tls: { cert: /c, key: /k }`])
    t.strictSame(warned(serving(safe)), [], safe);
  t.strictSame(warned(`policy: { commands: ["*"] }\nserving: { listen: "0.0.0.0:1" }`), [], "nothing is served");
  t.end();
});

t.test("reload keeps the old one when the new one is invalid", (t) => {
  const old = load(FULL);
  const bad = reload(old, "storez: []", "agent.yaml", {});
  t.equal(bad.current, old);
  t.equal(bad.problem?.code, "CONFIG_INVALID");
  const good = reload(old, FULL.replace("/srv/agent", "/srv/b").replace("streams: 9", "streams: 8"), "agent.yaml", {});
  t.equal(good.problem, null);
  t.strictSame(good.needRestart, ["state"]);
  t.not(good.current.policy.digest, old.policy.digest);
  t.end();
});

t.test("the sub-programs", async (t) => {
  const run = async (text: string | null, ...args: string[]) => {
    let out = "";
    let err = "";
    let code = 0;
    const source: ConfigSource = {
      read: () => ({ text, source: "agent.yaml" }),
      environment: {},
      write: (s) => (out += s),
      writeError: (s) => (err += s),
      exit: (c) => (code = c),
    };
    const program = new Command();
    configCommands(program, source);
    policyCommands(program, { ...source, load: (file) => loadFor(source, file)?.policy ?? null });
    await program.parseAsync(args, { from: "user" });
    return { out, err, code };
  };
  t.match(await run(FULL, "config", "validate"), { code: 0, out: /valid/ });
  t.match(await run("x: 1\ny: 2", "config", "validate"), {
    code: 2,
    err: /agent\.yaml:1: x is.*\nagent\.yaml:2: y is/,
  });
  t.match(await run(null, "config", "show", "--origin"), { code: 0, out: /state: \/var\/lib\/sallyport # default/ });
  t.match(JSON.parse((await run(null, "config", "schema")).out), { type: "object", additionalProperties: false });
  t.match(await run(FULL, "policy", "show"), { code: 0, out: /^# digest [0-9a-f]{64}/ });
  t.match(await run(FULL, "policy", "test", "read", "lake", "a/b"), {
    code: 0,
    out: /allowed by policy\.stores\[0\]\.read\[0\]/,
  });
  t.match(await run(FULL, "policy", "test", "write", "lake", "a/b"), {
    code: 1,
    out: /refused by policy\.stores\[0\]\.write\n/,
  });
  t.match(await run(FULL, "policy", "test", "fly"), { code: 2, err: /fly is not an action/ });
  const asked = async (...words: string[]) => {
    const { code, out, err } = await run(FULL, "policy", "test", ...words);
    return [code, (code === 2 ? err : out).split("\n")[0]];
  };
  const digest = `sha256:${"c".repeat(64)}`;
  t.strictSame(await asked("image", `reg.example/ml/x@${digest}`), [0, "allowed by policy.images[0]"]);
  t.strictSame(await asked("image", digest), [1, "refused by policy.images"]);
  t.strictSame(await asked("image", "reg.example/ml/x:1"), [
    2,
    "reg.example/ml/x:1 names no image by its digest: name@sha256:… or sha256:…",
  ]);
  t.strictSame(await asked("network", "tracker"), [0, "allowed by policy.networks[0]"]);
  t.strictSame(await asked("network", "host"), [1, "refused by policy.networks (default)"]);
  t.strictSame(await asked("predict", "digits"), [0, "allowed by policy.release.predict"]);
  t.strictSame(await asked("predict", "faces"), [1, "refused by policy.release.predict"]);
  t.strictSame(await asked("engine", "docker"), [0, "allowed by policy.engines[1]"]);
  t.strictSame(await asked("ceiling", "cpus", "0.5"), [0, "allowed by policy.ceilings.cpus"]);
  t.strictSame(await asked("ceiling", "cpus", "0.6"), [1, "refused by policy.ceilings.cpus"]);
  t.strictSame(await asked("ceiling", "replicas", "1"), [1, "refused by policy.ceilings.replicas (default)"]);
  t.strictSame(await asked("ceiling", "replicas", "0.5"), [2, "ceiling replicas needs a whole number."]);
  for (const verb of ["image", "network", "predict"]) t.equal((await asked(verb))[0], 2, verb);
  t.match(await run(FULL, "policy", "test", "ceiling", "streams", "10"), {
    code: 1,
    out: /at most 9; 10 were asked for/,
  });
});
