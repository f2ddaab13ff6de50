import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { systemClock } from "@sallyport/protocol";
import t from "tap";
import { startVault } from "../../test/support/servers.ts";
import { needs } from "../../test/support/skip.ts";
import { createRedactor } from "../redaction/index.ts";
import { openSecrets, type SecretsOptions } from "./index.ts";

const make = (options: Partial<SecretsOptions> = {}) => {
  const redactor = createRedactor();
  return {
    redactor,
    secrets: openSecrets({ vault: null, named: {}, environment: {}, redactor, clock: systemClock, ...options }),
  };
};

t.test("environment and files", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "sallyport-secrets-"));
  t.teardown(() => rmSync(dir, { recursive: true }));
  writeFileSync(join(dir, "token"), "file-value-123\n");
  writeFileSync(join(dir, "short"), "1234567\n");
  writeFileSync(join(dir, "big"), "x".repeat(70_000));
  const { secrets, redactor } = make({
    environment: { GOOD: "env-value-123", EMPTY: "" },
    named: { both: `a-\${env:GOOD}-\${file:${dir}/token}`, "quoted $${": "x$${env:GOOD}" },
  });
  t.equal((await secrets.resolve(`\${file:${dir}/token}`)).reveal(), "file-value-123");
  t.equal((await secrets.named("both")).reveal(), "a-env-value-123-file-value-123");
  t.equal((await secrets.named("quoted $${")).reveal(), "x${env:GOOD}");
  t.equal(redactor.text("env-value-123 file-value-123"), "[redacted] [redacted]");
  await t.rejects(secrets.resolve("${env:MISSING}"), { code: "SECRET_UNKNOWN", message: /MISSING/ });
  await t.rejects(secrets.resolve("${env:EMPTY}"), { code: "SECRET_UNKNOWN" });
  await t.rejects(secrets.resolve("${env:constructor}"), { code: "SECRET_UNKNOWN" });
  await t.rejects(secrets.resolve(`\${file:${dir}/nothing}`), { code: "SECRET_UNKNOWN" });
  await t.rejects(secrets.resolve(`\${file:${dir}/short}`), {
    code: "CONFIG_INVALID",
    message: /short.*shorter than 8/,
  });
  await t.rejects(secrets.resolve(`\${file:${dir}/big}`), { code: "CONFIG_INVALID" });
  await t.rejects(secrets.named("toString"), { code: "SECRET_UNKNOWN", message: /it has both/ });
  await t.rejects(secrets.resolve("${vault:kv/a#b}"), { code: "CONFIG_INVALID" });
  if (process.getuid?.() !== 0) {
    chmodSync(join(dir, "token"), 0);
    await t.rejects(make().secrets.resolve(`\${file:${dir}/token}`), { code: "SECRET_DENIED" });
  }
  secrets.close();
});

t.test("a value refuses to be shown", async (t) => {
  const { secrets } = make({ environment: { GOOD: "env-value-123" } });
  const value = await secrets.resolve("${env:GOOD}");
  for (const shown of [
    String(value),
    `${value}`,
    JSON.stringify({ value }),
    inspect(value),
    inspect({ a: [value] }, { depth: 9, showHidden: true }),
    "" + value,
    Object.values(value).join(),
  ]) {
    t.notMatch(shown, "env-value-123");
  }
  secrets.close();
});

t.test("the token follows no redirect, no proxy variable and no other address", async (t) => {
  const seen: IncomingHttpHeaders[] = [];
  const elsewhere = createServer((request, response) => {
    seen.push(request.headers);
    response.end("{}");
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => elsewhere.once("listening", resolve));
  const other = `http://127.0.0.1:${(elsewhere.address() as AddressInfo).port}`;
  const vault = createServer((_, response) =>
    response.writeHead(307, { location: `${other}/v1/kv/data/a` }).end(),
  ).listen(0, "127.0.0.1");
  await new Promise((resolve) => vault.once("listening", resolve));
  t.teardown(() => [vault.close(), elsewhere.close()]);
  const variables = {
    HTTP_PROXY: other,
    http_proxy: other,
    VAULT_ADDR: other,
    VAULT_NAMESPACE: "x",
    VAULT_PREFIX: "/y",
    VAULT_TOKEN: "not-this-token",
    NODE_USE_ENV_PROXY: "1",
  };
  const before = { ...process.env };
  Object.assign(process.env, variables);
  t.teardown(() => {
    for (const name of Object.keys(variables)) if (before[name] === undefined) delete process.env[name];
  });
  const { secrets } = make({
    vault: { address: `http://127.0.0.1:${(vault.address() as AddressInfo).port}`, token: "vault-token-1", ca: null },
  });
  await t.rejects(secrets.resolve("${vault:kv/a#b}"), { code: "SECRET_UNREACHABLE", message: /redirect/ });
  t.equal(seen.length, 0);
  secrets.close();
});

t.test("Vault itself", { skip: needs("vault") }, async (t) => {
  const vault = await startVault(t, { tls: true });
  await vault.writeSecret("ml/s3", { secret_key: "from-vault-1", short: "abc" });
  const options = (token: string, ca: string | null = vault.caFile ?? null) => ({
    vault: { address: vault.address, token, ca },
    environment: { TOKEN: vault.token },
  });
  const { secrets, redactor } = make(options("${env:TOKEN}"));
  t.equal((await secrets.resolve("${vault:secret/ml/s3#secret_key}")).reveal(), "from-vault-1");
  t.equal(redactor.text(`from-vault-1 ${vault.token}`), "[redacted] [redacted]");
  await vault.writeSecret("ml/s3", { secret_key: "from-vault-2" });
  t.equal((await secrets.resolve("${vault:secret/ml/s3#secret_key}")).reveal(), "from-vault-1", "held for a minute");
  secrets.forget("${vault:secret/ml/s3#secret_key}");
  t.equal((await secrets.resolve("${vault:secret/ml/s3#secret_key}")).reveal(), "from-vault-2");
  await t.rejects(secrets.resolve("${vault:secret/ml/s3#nothing}"), {
    code: "SECRET_UNKNOWN",
    message: /field nothing is missing/,
  });
  await t.rejects(secrets.resolve("${vault:secret/ml/none#x}"), { code: "SECRET_UNKNOWN" });
  await t.rejects(secrets.resolve("${vault:nomount/ml/none#x}"), { code: "SECRET_UNKNOWN" });
  const denied: unknown = await make(options("wrong-token-123"))
    .secrets.resolve("${vault:secret/ml/s3#secret_key}")
    .catch((error: unknown) => error);
  t.match(denied, { code: "SECRET_DENIED" });
  t.notMatch(inspect(denied, { depth: 9 }), "wrong-token-123");
  await t.rejects(make(options("${env:TOKEN}", null)).secrets.resolve("${vault:secret/ml/s3#secret_key}"), {
    code: "SECRET_UNREACHABLE",
    fix: /secrets.vault.ca/,
  });
  await vault.stop();
  secrets.forget("${vault:secret/ml/s3#secret_key}");
  await t.rejects(secrets.resolve("${vault:secret/ml/s3#secret_key}"), {
    code: "SECRET_UNREACHABLE",
    message: /ECONNREFUSED/,
  });
  secrets.close();
});
