import { readFileSync } from "node:fs";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { connect as tlsConnect } from "node:tls";
import { join } from "node:path";
import {
  deploymentSpecSchema,
  jsonBody,
  newCommandId,
  newId,
  parseEnrolmentSecret,
  certificateFingerprint,
  pipelineSchema,
  type DeploymentId,
  type EnrollmentId,
  type ReplicaId,
} from "@sallyport/protocol";
import { pino } from "pino";
import t from "tap";
import { waitFor, type Teardown } from "../../test/support/launcher.ts";
import { storePlace } from "../../test/support/store.ts";
import { Authenticator, newApiToken } from "../auth/index.ts";
import { loadConfig } from "../config/index.ts";
import type { Scope, Store } from "../store/index.ts";
import { startCloud, type RunningCloud } from "../wiring/cloud.ts";
import { systemClock } from "@sallyport/protocol";
import type { Problem } from "./api.ts";

interface World {
  cloud: RunningCloud;
  /** A second process's view of the same database: what tests put there by hand. */
  store: Store;
  scope: Scope;
  dir: string;
}

async function world(t: Teardown, flags: Record<string, unknown> = {}): Promise<World> {
  const place = await storePlace(t);
  const { dir } = place;
  const config = loadConfig({
    flags: { data: dir, database: place.database ?? undefined, listen: "127.0.0.1:0", drainMs: 200, ...flags },
    environment: {},
    file: null,
  });
  const cloud = await startCloud(config, "0.0.0-test", pino({ level: "silent" }), (error) => {
    throw error;
  });
  t.teardown(() => cloud.stop());
  const store = await place.open();
  t.teardown(() => store.close());
  const user = await store.ensureAdmin("admin", "default");
  return {
    cloud,
    store,
    dir,
    scope: { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" } },
  };
}

async function tokenFor(store: Store, scope: Scope): Promise<{ id: string; token: string }> {
  const { token, hash, hint } = newApiToken();
  const id = `tok_${newId("run").slice(4)}`;
  const now = Date.now();
  await store.addToken(scope, {
    id,
    user: scope.actor.id,
    label: "test",
    hint,
    hash,
    createdAt: now,
    expiresAt: now + 3600_000,
  });
  return { id, token };
}

const problemOf = async (response: Response): Promise<Problem> => {
  if (response.headers.get("content-type") !== "application/problem+json; charset=utf-8")
    throw new Error(
      `not a problem: ${response.status} ${response.headers.get("content-type")} ${await response.text()}`,
    );
  return (await response.json()) as Problem;
};
const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
const json = { "content-type": "application/json" };

/** With a Host and Origin of our choice, which fetch does not allow. */
function raw(
  url: string,
  options: { method: string; headers: Record<string, string>; body?: string },
): Promise<{ status: number; headers: IncomingMessage["headers"]; body: string }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(url, { method: options.method, headers: options.headers, agent: false }, (response) => {
      let body = "";
      response
        .setEncoding("utf8")
        .on("data", (text: string) => (body += text))
        .on("end", () => resolve({ status: response.statusCode!, headers: response.headers, body }));
    });
    request.on("error", reject);
    request.end(options.body);
  });
}

async function signIn(
  cloud: RunningCloud,
  secret = cloud.signInUrl!.split("#")[1]!,
): Promise<{ cookie: string; response: Response }> {
  const response = await fetch(`${cloud.url}/v1/session`, {
    method: "POST",
    headers: json,
    body: JSON.stringify({ signin: secret }),
  });
  return { response, cookie: response.headers.getSetCookie()[0]?.split(";")[0] ?? "" };
}

const SPEC = deploymentSpecSchema.parse({ model: { store: "s", path: "m", digest: `sha256:${"ab".repeat(32)}` } });

/** Things of one workspace that routes name. */
async function furnish(
  store: Store,
  scope: Scope,
  pool: string,
): Promise<{
  enrollment: EnrollmentId;
  replica: ReplicaId;
  command: string;
  run: string;
  token: string;
  pool: string;
  deployment: DeploymentId;
}> {
  const now = Date.now();
  const row = await store.ensurePool(scope, pool, now);
  const enrollment = newId("enrollment");
  await store.addEnrollment(scope, {
    id: enrollment,
    pool: row.id,
    name: null,
    secretHash: "x",
    createdAt: now,
    expiresAt: now + 10_000,
  });
  const joined = await store.redeemEnrollment({
    id: enrollment,
    secretHash: "x",
    publicKey: "k",
    fingerprint: "f",
    nameHint: null,
    remoteAddress: null,
    now,
  });
  if ("refused" in joined) throw new Error(joined.refused);
  const run = newId("run");
  const command = newCommandId();
  await store.createCommand(scope, {
    id: command,
    pool: row.id,
    kind: "pipeline.run",
    resource: `run:${run}`,
    intent: "{}",
    body: jsonBody({}),
    notBefore: 0,
    expires: now + 3600_000,
    createdAt: now,
    run: {
      id: run,
      pool: row.id,
      pipeline: "p",
      spec: pipelineSchema.parse({ name: "p", outputs: { store: "s" }, steps: [{ name: "a", program: "x" }] }),
      params: {},
      createdAt: now,
    },
  });
  const deployment = newId("deployment");
  await store.commitDeployment(scope, {
    deployment: { id: deployment, pool: row.id, name: "d", spec: SPEC },
    expectedGeneration: 0,
    revision: 1,
    command: {
      id: newCommandId(),
      pool: row.id,
      kind: "deployment.apply",
      resource: `deployment:${deployment}`,
      intent: "{}",
      body: jsonBody({}),
      notBefore: 0,
      expires: now + 3600_000,
      createdAt: now,
    },
  });
  const { id } = await tokenFor(store, scope);
  return { enrollment, replica: joined.replica.id, command, run, token: id, pool, deployment };
}

t.test("doors: from the route table, each route without, with, and with a foreign credential", async (t) => {
  const { cloud, store, scope } = await world(t);
  const mine = await tokenFor(store, scope);
  const other = await store.makeWorkspace("other", "other-admin", Date.now());
  const foreign = await tokenFor(store, {
    workspace: other.workspace,
    actor: { id: other.id, name: other.name, via: "session" },
  });
  const things = await furnish(store, scope, "lab");

  const concrete = (url: string): string => {
    const id = url.startsWith("/v1/agents")
      ? things.replica
      : url.startsWith("/v1/enrollments")
        ? things.enrollment
        : url.startsWith("/v1/tokens")
          ? things.token
          : url.startsWith("/v1/runs")
            ? things.run
            : url.startsWith("/v1/commands")
              ? things.command
              : url.startsWith("/v1/deployments")
                ? things.deployment
                : "none";
    const path = url
      .replace(":pool", things.pool)
      .replace(":store", "s")
      .replace(":step", "a")
      .replace(":replica", "r1.0")
      .replace(":id", id);
    return /\/(stat|preview|content)$/.test(path) ? `${path}?path=a.txt` : path;
  };
  const bodies: Record<string, unknown> = {
    "PATCH /v1/agents/:id": { name: "renamed" },
    "PATCH /v1/pools/:pool": { maxRuns: 1 },
    "POST /v1/runs/:id/rerun": {},
    "POST /v1/commands/:id/lost": { reason: "gone" },
    "PUT /v1/deployments/:id": { spec: SPEC },
    "POST /v1/deployments/:id/scale": { replicas: 2 },
    "POST /v1/deployments/:id/rollback": { revision: 1 },
    "POST /v1/deployments/:id/diff": { spec: SPEC },
  };
  const call = (route: { method: string; url: string }, headers: Record<string, string>) => {
    const body = bodies[`${route.method} ${route.url}`];
    return fetch(`${cloud.url}${concrete(route.url)}`, {
      method: route.method,
      headers: body === undefined ? headers : { ...headers, ...json },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
  };
  const api = cloud.routes.filter((route) => route.url.startsWith("/v1/") || route.url === "/metrics");
  t.ok(api.length > 25, `${api.length} routes`);
  const open = cloud.routes.filter((route) => route.public).map((route) => `${route.method} ${route.url}`);
  t.same(
    open.sort(),
    [
      "GET /",
      "GET /healthz",
      "GET /link",
      "GET /openapi.json",
      "GET /readyz",
      "HEAD /",
      "HEAD /healthz",
      "HEAD /link",
      "HEAD /openapi.json",
      "HEAD /readyz",
      "POST /v1/session",
    ].sort(),
    "public routes are these and no others",
  );

  for (const route of api.filter((r) => !r.public)) {
    const name = `${route.method} ${route.url}`;
    for (const [what, headers] of Object.entries({
      none: {},
      wrong: bearer(newApiToken().token),
      form: bearer("spt_x"),
      basic: { authorization: "Basic YTpi" },
      cookie: { cookie: `sallyport=${"x".repeat(43)}` },
    })) {
      const response = await call(route, headers as Record<string, string>);
      if (response.status !== 401) t.fail(`${name} with ${what}: ${response.status}`);
      if (route.method === "HEAD") await response.arrayBuffer();
      else t.equal((await problemOf(response)).code, "UNAUTHENTICATED", `${name} with ${what}`);
    }
    // A person of another workspace finds nothing, whatever the method.
    if (/:(id|pool)/.test(route.url)) {
      const response = await call(route, bearer(foreign.token));
      t.equal(response.status, 404, `${name} from another workspace`);
      await response.arrayBuffer();
    }
  }
  for (const path of ["/v1/agents", "/v1/pools", "/v1/runs", "/v1/commands", "/v1/enrollments", "/v1/deployments"]) {
    t.same(
      ((await (await fetch(cloud.url + path, { headers: bearer(foreign.token) })).json()) as { items: unknown[] })
        .items,
      [],
      `${path} of another workspace is empty`,
    );
    t.ok(
      ((await (await fetch(cloud.url + path, { headers: bearer(mine.token) })).json()) as { items: unknown[] }).items
        .length > 0,
      path,
    );
  }
  const unknown = await fetch(`${cloud.url}/v1/nothing`, { headers: { accept: "text/html" } });
  t.equal((await problemOf(unknown)).code, "NOT_FOUND");
  t.equal((await fetch(`${cloud.url}/metrics`, { headers: bearer(mine.token) })).status, 200);
});

t.test("browser attacks: every changing route × Origin and Host", async (t) => {
  const { cloud, store, scope } = await world(t);
  const { cookie } = await signIn(cloud);
  const { token } = await tokenFor(store, scope);
  const host = new URL(cloud.url).host;
  const port = new URL(cloud.url).port;
  const changing = cloud.routes.filter((route) => !["GET", "HEAD", "OPTIONS"].includes(route.method) && !route.public);
  // Last: from the page itself it really signs out.
  changing.sort((a, b) => Number(a.url === "/v1/session") - Number(b.url === "/v1/session"));
  t.ok(changing.length > 8, `${changing.length} routes that change something`);
  const path = (url: string) => url.replace(/:id/, newId("run")).replace(/:\w+/g, "x");
  const origins = {
    absent: undefined,
    null: "null",
    foreign: "https://evil.example",
    port: `http://127.0.0.1:${Number(port) + 1}`,
    scheme: `https://${host}`,
    suffix: `http://${host}.evil.example`,
  };
  for (const route of changing) {
    for (const [what, origin] of Object.entries(origins)) {
      const answer = await raw(cloud.url + path(route.url), {
        method: route.method,
        headers: { host, cookie, ...(origin === undefined ? {} : { origin }) },
      });
      if (answer.status !== 403 || (JSON.parse(answer.body) as Problem).code !== "ORIGIN_DENIED")
        t.fail(`${route.method} ${route.url} from ${what} origin: ${answer.status}`);
    }
    const own = await raw(cloud.url + path(route.url), {
      method: route.method,
      headers: { host, cookie, origin: cloud.url },
    });
    t.not(own.status, 403, `${route.method} ${route.url} from the page itself`);
    const byToken = await raw(cloud.url + path(route.url), {
      method: route.method,
      headers: { host, ...bearer(token) },
    });
    t.not(byToken.status, 403, `${route.method} ${route.url} by token needs no Origin`);
  }
  for (const evil of ["evil.example", `evil.example:${port}`, `127.0.0.1.evil.example:${port}`]) {
    for (const path of ["/healthz", "/v1/me", "/", "/openapi.json"])
      t.equal(
        (await raw(cloud.url + path, { method: "GET", headers: { host: evil } })).status,
        403,
        `${path} as ${evil}`,
      );
  }
  t.equal(
    (
      await raw(`${cloud.url}/v1/session`, {
        method: "POST",
        headers: { host, ...json, origin: "https://evil.example" },
        body: '{"signin":"xxxxxxxxxxxxxxxxxxxxxxxx"}',
      })
    ).status,
    403,
    "nobody is signed in from another site",
  );
  t.equal(
    (
      await raw(`${cloud.url}/v1/me`, {
        method: "OPTIONS",
        headers: { host, origin: "https://evil.example", "access-control-request-method": "GET" },
      })
    ).headers["access-control-allow-origin"],
    undefined,
  );
});

t.test("signing in: once by link, by password, out again; a token in a URL is refused", async (t) => {
  const { cloud, dir } = await world(t);
  t.equal(readFileSync(join(dir, "sign-in-url"), "utf8").trim(), cloud.signInUrl);
  const first = await signIn(cloud);
  t.equal(first.response.status, 200);
  t.match(
    first.response.headers.getSetCookie()[0],
    /^sallyport=[\w-]{43}; Max-Age=43200; Path=\/; HttpOnly; SameSite=Lax$/,
  );
  t.equal((await signIn(cloud)).response.status, 401, "the link is spent");
  const headers = { cookie: first.cookie, origin: cloud.url, ...json };
  t.match(await (await fetch(`${cloud.url}/v1/me`, { headers })).json(), {
    user: { name: "admin" },
    via: "session",
    hasPassword: false,
  });
  t.equal(
    (await fetch(`${cloud.url}/v1/me/password`, { method: "PUT", headers, body: '{"password":"short"}' })).status,
    422,
  );
  const token = (await (
    await fetch(`${cloud.url}/v1/tokens`, { method: "POST", headers, body: '{"label":"x"}' })
  ).json()) as { token: string };
  t.equal(
    (
      await fetch(`${cloud.url}/v1/me/password`, {
        method: "PUT",
        headers: { ...bearer(token.token), ...json },
        body: '{"password":"correct horse battery"}',
      })
    ).status,
    403,
    "not by a token, which would outlive itself so",
  );
  const changed = await fetch(`${cloud.url}/v1/me/password`, {
    method: "PUT",
    headers,
    body: '{"password":"correct horse battery"}',
  });
  const cookie = changed.headers.getSetCookie()[0]!.split(";")[0]!;
  t.equal((await fetch(`${cloud.url}/v1/me`, { headers })).status, 401, "the old session ended with the old password");
  t.equal((await fetch(`${cloud.url}/v1/me`, { headers: { cookie } })).status, 200);
  const byPassword = (password: string) =>
    fetch(`${cloud.url}/v1/session`, {
      method: "POST",
      headers: json,
      body: JSON.stringify({ name: "admin", password }),
    });
  t.equal((await byPassword("correct horse battery")).status, 200);
  const wrong = [];
  for (let i = 0; i < 12; i++) wrong.push((await byPassword("wrong")).status);
  t.same(wrong, [...Array<number>(10).fill(401), 429, 429], "guessing is slowed");
  t.equal(
    (await fetch(`${cloud.url}/v1/session`, { method: "DELETE", headers: { cookie, origin: cloud.url } })).status,
    204,
  );
  t.equal((await fetch(`${cloud.url}/v1/me`, { headers: { cookie } })).status, 401);
  for (const query of [`?token=${newApiToken().token}`, `?a=%73pt_${"x".repeat(49)}`]) {
    t.match(await problemOf(await fetch(`${cloud.url}/v1/me${query}`)), { status: 400, code: "SECRET_IN_URL" });
  }
});

t.test("bad input: each answer is a problem that names field, cause and fix", async (t) => {
  const { cloud, store, scope } = await world(t);
  const { token } = await tokenFor(store, scope);
  const headers = { ...bearer(token), ...json };
  const post = async (path: string, body: string, extra: Record<string, string> = {}) => {
    const response = await fetch(cloud.url + path, { method: "POST", headers: { ...headers, ...extra }, body });
    return { status: response.status, id: response.headers.get("x-request-id"), problem: await problemOf(response) };
  };
  const cases: [string, string, Record<string, string>, number, string, string | null][] = [
    ["/v1/enrollments", '{"pool":"lab","colour":1}', {}, 422, "INPUT_INVALID", "body"],
    ["/v1/enrollments", '{"pool":7}', {}, 422, "INPUT_INVALID", "body.pool"],
    ["/v1/enrollments", "{}", {}, 422, "INPUT_INVALID", "body.pool"],
    ["/v1/enrollments", '{"pool":', {}, 422, "INPUT_INVALID", null],
    ["/v1/enrollments", '{"__proto__":{"x":1},"pool":"lab"}', {}, 422, "INPUT_INVALID", null],
    [
      "/v1/enrollments",
      "pool=lab",
      { "content-type": "application/x-www-form-urlencoded" },
      415,
      "MEDIA_TYPE_UNSUPPORTED",
      null,
    ],
    ["/v1/enrollments", "{}", { "content-type": "text/plain" }, 415, "MEDIA_TYPE_UNSUPPORTED", null],
    ["/v1/enrollments", JSON.stringify({ pool: "x".repeat(1024 * 1024) }), {}, 413, "TOO_LARGE", null],
    [
      "/v1/enrollments",
      '{"pool":"lab"}',
      { "idempotency-key": "no spaces" },
      422,
      "INPUT_INVALID",
      "headers.idempotency-key",
    ],
    ["/v1/tokens", '{"label":"x","expiresInDays":91}', {}, 422, "INPUT_INVALID", "body.expiresInDays"],
    ["/v1/session", '{"signin":"short"}', {}, 422, "INPUT_INVALID", "body.signin"],
  ];
  for (const [path, body, extra, status, code, field] of cases) {
    const { problem, id, status: got } = await post(path, body, extra);
    const name = `${path} ${body.slice(0, 40)}`;
    t.equal(got, status, name);
    t.match(
      problem,
      { status, code, requestId: id, instance: path, type: `urn:sallyport:problem:${code}`, fix: /./ },
      name,
    );
    if (field !== null) t.equal(problem.errors?.[0]?.path, field, name);
  }
  const get = async (path: string) => problemOf(await fetch(cloud.url + path, { headers }));
  t.match(await get("/v1/agents/rep_x"), { code: "INPUT_INVALID", errors: [{ path: "path.id" }] });
  t.match(await get("/v1/commands?limit=9999"), { code: "INPUT_INVALID", errors: [{ path: "query.limit" }] });
  t.match(await get("/v1/commands?cursor=zzz"), { code: "INPUT_INVALID", errors: [{ path: "query.cursor" }] });
  t.match(await get("/v1/pools/%zz"), { code: "INPUT_INVALID" });
  t.match(
    await raw(cloud.url, { method: "GET", headers: { host: new URL(cloud.url).host, "x-long": "x".repeat(20_000) } }),
    { status: 431 },
  );
  const document = (await (await fetch(`${cloud.url}/openapi.json`)).json()) as {
    openapi: string;
    paths: Record<string, unknown>;
  };
  t.equal(document.openapi, "3.1.0");
  const described = new Set(Object.keys(document.paths));
  t.same(
    cloud.routes.filter(
      (route) => route.url.startsWith("/v1/") && !described.has(route.url.replace(/:(\w+)/g, "{$1}")),
    ),
    [],
    "every route of the API is described",
  );
});

t.test("enrolment over HTTP: pool made, secret readable by an agent, key not repeated, withdrawn once", async (t) => {
  const { cloud, store, scope } = await world(t);
  const { token } = await tokenFor(store, scope);
  const headers = { ...bearer(token), ...json, "idempotency-key": "one" };
  const make = () => fetch(`${cloud.url}/v1/enrollments`, { method: "POST", headers, body: '{"pool":"lab"}' });
  const made = (await (await make()).json()) as {
    id: string;
    secret: string;
    url: string;
    commands: { text: string }[];
  };
  const secret = parseEnrolmentSecret(made.secret);
  t.equal(secret.id, made.id);
  t.equal(secret.caFingerprint, null);
  t.equal(made.url, cloud.url);
  t.ok(made.commands.every(({ text }) => text.includes(made.secret) && text.includes(cloud.url)));
  const again = await make();
  t.equal(again.status, 409);
  t.match((await problemOf(again)).details, { id: made.id });
  t.equal(
    (await fetch(`${cloud.url}/v1/enrollments/${made.id}`, { method: "DELETE", headers: bearer(token) })).status,
    204,
  );
  t.match(await (await fetch(`${cloud.url}/v1/enrollments/${made.id}`, { headers: bearer(token) })).json(), {
    state: "withdrawn",
  });
  const joined = await store.redeemEnrollment({
    id: secret.id,
    secretHash: "wrong",
    publicKey: "k",
    fingerprint: "f",
    nameHint: null,
    remoteAddress: "10.1.1.1",
    now: 1,
  });
  t.same(joined, { refused: "ENROLMENT_UNKNOWN" });
  const { replica } = await furnish(store, scope, "lab");
  const agent = await fetch(`${cloud.url}/v1/agents/${replica}`, { headers: bearer(token) });
  const etag = agent.headers.get("etag")!;
  t.match(await agent.json(), { name: "lab-1", state: "waiting" });
  const rename = (name: string, ifMatch: string) =>
    fetch(`${cloud.url}/v1/agents/${replica}`, {
      method: "PATCH",
      headers: { ...bearer(token), ...json, "if-match": ifMatch },
      body: JSON.stringify({ name }),
    });
  t.match(await (await rename("alpha", etag)).json(), { name: "alpha" });
  t.equal((await rename("beta", etag)).status, 409, "changed since it was read");
  t.match(
    await (await fetch(`${cloud.url}/v1/agents/${replica}/revoke`, { method: "POST", headers: bearer(token) })).json(),
    { state: "revoked" },
  );
  t.equal((await fetch(`${cloud.url}/v1/agents/${replica}`, { method: "DELETE", headers: bearer(token) })).status, 204);
  t.equal((await fetch(`${cloud.url}/v1/agents/${replica}`, { headers: bearer(token) })).status, 404);
});

/** Events of an SSE stream as they come. */
async function follow(
  url: string,
  headers: Record<string, string>,
): Promise<{
  events: { event: string; data: { n: number; id?: string; entity?: string } }[];
  closed: Promise<void>;
  cancel(): Promise<void>;
}> {
  const response = await fetch(url, { headers });
  if (response.status !== 200) throw new Error(`status ${response.status}`);
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  const events: { event: string; data: { n: number } }[] = [];
  const closed = (async () => {
    let text = "";
    for (;;) {
      const { done, value } = await reader.read().catch(() => ({ done: true, value: undefined }));
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop()!;
      for (const block of blocks) {
        const event = /^event: (.+)$/m.exec(block)?.[1];
        const data = /^data: (.+)$/m.exec(block)?.[1];
        if (event !== undefined && data !== undefined) events.push({ event, data: JSON.parse(data) as { n: number } });
      }
    }
  })();
  return { events, closed, cancel: () => reader.cancel() };
}

t.test("changes: replayed by number, none of another workspace, ended when the token is revoked", async (t) => {
  const { cloud, store, scope } = await world(t);
  const mine = await tokenFor(store, scope);
  const other = await store.makeWorkspace("other", "other-admin", Date.now());
  const foreign = await tokenFor(store, {
    workspace: other.workspace,
    actor: { id: other.id, name: other.name, via: "session" },
  });
  const live = await follow(`${cloud.url}/v1/changes`, bearer(mine.token));
  await waitFor("ready", () => live.events.some((event) => event.event === "ready"));
  const label = async (token: string, name: string) =>
    (await (
      await fetch(`${cloud.url}/v1/tokens`, {
        method: "POST",
        headers: { ...bearer(token), ...json },
        body: JSON.stringify({ label: name }),
      })
    ).json()) as { id: string };
  const made = [await label(mine.token, "a"), await label(mine.token, "b")];
  const theirs = await label(foreign.token, "c");
  await waitFor("two changes", () => live.events.filter((event) => event.event === "change").length === 2);
  t.same(
    live.events.slice(1).map((event) => event.data.id),
    made.map(({ id }) => id),
  );
  const n = live.events[1]!.data.n;
  const replay = await follow(`${cloud.url}/v1/changes`, { ...bearer(mine.token), "last-event-id": String(n) });
  await waitFor("replay", () => replay.events.length === 2);
  t.same(
    replay.events.map((event) => [event.event, event.data.n]),
    [
      ["ready", n],
      ["change", n + 1],
    ],
  );
  const lost = await follow(`${cloud.url}/v1/changes?after=99999`, bearer(mine.token));
  await waitFor("reset", () => lost.events.some((event) => event.event === "reset"));
  t.notOk(JSON.stringify([live.events, replay.events]).includes(theirs.id));
  const before = performance.now();
  t.equal(
    (await fetch(`${cloud.url}/v1/tokens/${mine.id}`, { method: "DELETE", headers: bearer(mine.token) })).status,
    204,
  );
  await Promise.all([live.closed, replay.closed, lost.closed]);
  t.ok(performance.now() - before < 10_000, "closed within 10 s");
});

t.test(
  "changes: a hundred readers at once are held to the limit, and those that left leave nothing behind",
  async (t) => {
    const { cloud, store, scope } = await world(t);
    const { token } = await tokenFor(store, scope);
    const port = Number(new URL(cloud.url).port);
    const open = (path = "/v1/changes") => {
      const socket = connect({ port, host: "127.0.0.1" });
      t.teardown(() => socket.destroy());
      const head = new Promise<string>(
        (resolve) =>
          void socket
            .once("data", (bytes: Buffer) => resolve(bytes.toString()))
            .once("close", () => resolve(""))
            .on("error", () => {}),
      );
      socket.write(`GET ${path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer ${token}\r\n\r\n`);
      return { socket, head };
    };
    const gauge = async () =>
      Number(
        /^sallyport_cloud_change_streams (\d+)$/m.exec(
          await (await fetch(`${cloud.url}/metrics`, { headers: bearer(token) })).text(),
        )?.[1],
      );
    const many = Array.from({ length: 100 }, () => open());
    const heads = await Promise.all(many.map(({ head }) => head));
    t.equal(heads.filter((head) => head.startsWith("HTTP/1.1 200")).length, 32);
    t.equal(heads.filter((head) => head.startsWith("HTTP/1.1 429")).length, 68);
    for (const { socket } of many) socket.destroy();
    await waitFor("all gone", async () => (await gauge()) === 0);
    // Cut at every stage of the beginning.
    for (let n = 0; n < 40; n++) {
      const { socket } = open("/v1/changes?after=0");
      await new Promise((resolve) =>
        n % 4 === 0
          ? socket.once("connect", resolve)
          : n % 4 === 1
            ? setImmediate(resolve)
            : n % 4 === 2
              ? setTimeout(resolve, 1)
              : setTimeout(resolve, 3),
      );
      socket.resetAndDestroy();
    }
    await waitFor("all gone again", async () => (await gauge()) === 0);
    const after = await Promise.all(Array.from({ length: 32 }, () => open().head));
    t.ok(
      after.every((head) => head.startsWith("HTTP/1.1 200")),
      "all places are free",
    );
  },
);

t.test("own CA: a real TLS client that pins the enrolment's fingerprint gets in, others do not", async (t) => {
  const { cloud, dir, store, scope } = await world(t, { tls: "own", names: ["cloud.example"] });
  const port = Number(new URL(cloud.url).port);
  const ca = readFileSync(cloud.caFile!, "utf8");
  const { token } = await tokenFor(store, scope);
  const call = (options: { ca?: string; servername: string }) =>
    new Promise<{ text: string; ca: Buffer }>((resolve, reject) => {
      const socket = tlsConnect({ host: "127.0.0.1", port, ...options }, () => {
        let last = socket.getPeerCertificate(true);
        while (
          last.issuerCertificate !== undefined &&
          last.issuerCertificate !== last &&
          last.issuerCertificate.raw !== undefined &&
          !last.issuerCertificate.raw.equals(last.raw)
        )
          last = last.issuerCertificate;
        let text = "";
        socket
          .on("data", (bytes: Buffer) => (text += bytes.toString()))
          .on("end", () => resolve({ text, ca: last.raw }));
        socket.write(
          `POST /v1/enrollments HTTP/1.1\r\nhost: cloud.example\r\nauthorization: Bearer ${token}\r\ncontent-type: application/json\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{"pool":"lab"}`,
        );
      });
      socket.on("error", reject);
    });
  const answer = await call({ ca, servername: "cloud.example" });
  t.match(answer.text, /^HTTP\/1.1 201 /);
  t.match(answer.text, /strict-transport-security/);
  const secret = parseEnrolmentSecret((JSON.parse(/\{.*\}/s.exec(answer.text)![0]) as { secret: string }).secret);
  t.equal(secret.caFingerprint, certificateFingerprint(answer.ca), "the secret pins the CA that the server presents");
  await t.rejects(
    call({ servername: "cloud.example" }),
    { code: /SELF_SIGNED_CERT_IN_CHAIN|UNABLE_TO_VERIFY/ },
    "unknown CA",
  );
  await t.rejects(call({ ca, servername: "evil.example" }), { code: "ERR_TLS_CERT_ALTNAME_INVALID" });
  const authenticator = new Authenticator(store, systemClock);
  const secretLink = await authenticator.offerSignIn((await store.userByName("admin"))!);
  const cookie = await new Promise<string>((resolve, reject) => {
    const socket = tlsConnect({ host: "127.0.0.1", port, ca, servername: "cloud.example" }, () => {
      const body = JSON.stringify({ signin: secretLink });
      socket.write(
        `POST /v1/session HTTP/1.1\r\nhost: cloud.example\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
      );
    });
    let text = "";
    socket
      .on("data", (bytes: Buffer) => (text += bytes.toString()))
      .on("end", () => resolve(/set-cookie: (.*)/i.exec(text)?.[1] ?? ""))
      .on("error", reject);
  });
  t.match(cookie, /^__Host-sallyport=.*Path=\/; HttpOnly; Secure; SameSite=Lax/);
  t.throws(() => loadConfig({ flags: { data: dir, listen: "0.0.0.0:1", tls: "none" }, environment: {}, file: null }), {
    code: "CONFIG_INVALID",
    message: /loopback only/,
  });
});
