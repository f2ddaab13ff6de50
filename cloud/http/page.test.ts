import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import fastify from "fastify";
import t from "tap";
import { tempDir } from "../../test/support/launcher.ts";
import { servePage } from "./page.ts";
import type { ApiApp } from "./routes.ts";

const asBrowser = { accept: "text/html" };

t.test("each page has its own style nonce, and nothing else is allowed inline", async (t) => {
  const folder = tempDir(t, "page");
  mkdirSync(join(folder, "assets"));
  writeFileSync(join(folder, "index.html"), '<meta property="csp-nonce" nonce="__CSP_NONCE__"><p>page</p>');
  writeFileSync(join(folder, "assets/index-1.js"), "1");
  const app = fastify();
  t.teardown(() => app.close());
  await servePage(app as unknown as ApiApp, folder);
  const nonces = new Set<string>();
  for (const url of ["/", "/", "/runs/some-run?tab=spec"]) {
    const response = await app.inject({ url, headers: asBrowser });
    t.equal(response.statusCode, 200);
    const policy = String(response.headers["content-security-policy"]);
    const nonce = /style-src 'self' 'nonce-([\w-]+)'(?:;|$)/.exec(policy)?.[1] ?? "";
    t.ok(nonce.length >= 22, "128 bits");
    t.notMatch(policy, /unsafe|\*/);
    t.equal(response.body, `<meta property="csp-nonce" nonce="${nonce}"><p>page</p>`);
    t.equal(response.headers["cache-control"], "no-cache", "a stored page would repeat its nonce");
    nonces.add(nonce);
  }
  t.equal(nonces.size, 3, "never twice");
  const asset = await app.inject({ url: "/assets/index-1.js" });
  t.match(asset.headers["content-security-policy"], /style-src 'self';/);
  t.match(asset.headers["cache-control"], /immutable/);
  t.equal(
    (await app.inject({ url: "/v1/no-such", headers: asBrowser })).statusCode,
    404,
    "the API's paths are no pages",
  );
  t.equal((await app.inject({ url: "/assets/gone.js", headers: asBrowser })).statusCode, 404);
});

t.test("without a build it says how to make one", async (t) => {
  const app = fastify();
  t.teardown(() => app.close());
  await servePage(app as unknown as ApiApp, join(tempDir(t, "nothing"), "dist"));
  const response = await app.inject({ url: "/", headers: asBrowser });
  t.equal(response.statusCode, 503);
  t.match(response.body, /npm run build/);
});
