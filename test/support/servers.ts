// Real servers for tests, each by its recipe in test/support/servers. One server serves a test process; give each test
// its own bucket or path. Check `needs(...)` of skip.ts first: nothing is installed here.
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { request as httpsRequest } from "node:https";
import { join } from "node:path";
import { promisify } from "node:util";
import { randomUUID } from "node:crypto";
import { CreateBucketCommand, S3Client } from "@aws-sdk/client-s3";
import pg from "pg";
import { cleanEnv, repository, tempDir } from "./launcher.ts";
import type { Teardown } from "./launcher.ts";
import type { ServerName } from "./skip.ts";

const exec = promisify(execFile);

export interface Server {
  /** Its state, and DIR/log. Removed when the test ends. */
  readonly dir: string;
  /** What its recipe printed. */
  readonly settings: Readonly<Record<string, string>>;
  stop(): Promise<void>;
  /** Starts it again after `stop`, on the same port with the same state. */
  resume(): Promise<void>;
  /** Stops it when it runs, and starts it on the same port with the same state (vault: only with --persist). */
  restart(): Promise<void>;
}

/** Starts a server by its recipe; it ends with the test, or with this process however that ends. */
export async function startServer(t: Teardown, name: ServerName, options: readonly string[] = []): Promise<Server> {
  const dir = tempDir(t, name);
  const recipe = join(repository, "test/support/servers", name);
  const env = cleanEnv({ SERVER_OWNER: String(process.pid) });
  const cache = process.env["SALLYPORT_SERVERS_CACHE"];
  if (cache !== undefined) env["SALLYPORT_SERVERS_CACHE"] = cache;

  const start = async (more: readonly string[]) => {
    const { stdout } = await exec(recipe, ["start", dir, ...options, ...more], { env });
    const lines = stdout.split("\n").filter((line) => line.includes("="));
    return Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
    );
  };
  const stop = async () => {
    await exec(recipe, ["stop", dir], { env });
  };
  t.teardown(stop);
  const settings: Readonly<Record<string, string>> = await start([]);
  const resume = async () => {
    const address =
      settings["S3_ENDPOINT"] ?? settings["VAULT_ADDR"] ?? settings["TERMINATOR_URL"] ?? settings["PROXY_URL"];
    const port = settings["PGPORT"] ?? (address === undefined ? undefined : new URL(address).port);
    await start(port === undefined ? [] : ["--port", port]);
  };
  const restart = async () => {
    await stop();
    await resume();
  };
  return { dir, settings, stop, resume, restart };
}

function setting(server: Server, name: string): string {
  const value = server.settings[name];
  if (value === undefined) throw new Error(`the recipe printed no ${name}`);
  return value;
}

export interface S3Server extends Server {
  readonly endpoint: string;
  readonly region: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  /** PEM file of the authority that signed its certificate; undefined without TLS. */
  readonly caFile: string | undefined;
  /** Objects are plain files here, as BUCKET/KEY: a test may look at them or damage them behind the server's back. */
  readonly dataDir: string;
  /** Makes a new bucket and returns its name. */
  bucket(): Promise<string>;
  /** A client with the root key. The caller destroys it. */
  client(): S3Client;
}

/** versitygw: verifies signatures, path style. */
export async function startS3(t: Teardown, { tls = false }: { tls?: boolean } = {}): Promise<S3Server> {
  const server = await startServer(t, "s3", tls ? ["--tls"] : []);
  const endpoint = setting(server, "S3_ENDPOINT");
  const region = setting(server, "S3_REGION");
  const credentials = {
    accessKeyId: setting(server, "AWS_ACCESS_KEY_ID"),
    secretAccessKey: setting(server, "AWS_SECRET_ACCESS_KEY"),
  };
  const caFile = server.settings["S3_CA"];
  const client = () => {
    const requestHandler = caFile === undefined ? {} : { httpsAgent: { ca: readFileSync(caFile) } };
    return new S3Client({ endpoint, region, credentials, forcePathStyle: true, requestHandler });
  };
  return {
    ...server,
    endpoint,
    region,
    ...credentials,
    caFile,
    dataDir: join(server.dir, "data"),
    client,
    async bucket() {
      const name = `test-${randomUUID()}`;
      const made = client();
      try {
        await made.send(new CreateBucketCommand({ Bucket: name }));
      } finally {
        made.destroy();
      }
      return name;
    },
  };
}

export interface VaultServer extends Server {
  readonly address: string;
  /** The root token. */
  readonly token: string;
  /** PEM file of the authority that signed its certificate; undefined without TLS. */
  readonly caFile: string | undefined;
  /** Any request of Vault's HTTP API, as root: `api("POST", "secret/data/s3", { data: { key: "x" } })`. */
  api(method: string, path: string, body?: unknown): Promise<unknown>;
  /** Writes a secret of the KV v2 engine that is mounted at `secret/`. */
  writeSecret(path: string, data: Readonly<Record<string, string>>): Promise<void>;
}

/** `persist`: its state outlives stop and restart. */
export async function startVault(
  t: Teardown,
  { tls = false, persist = false }: { tls?: boolean; persist?: boolean } = {},
): Promise<VaultServer> {
  const server = await startServer(t, "vault", [...(tls ? ["--tls"] : []), ...(persist ? ["--persist"] : [])]);
  const address = setting(server, "VAULT_ADDR");
  const token = setting(server, "VAULT_TOKEN");
  const caFile = server.settings["VAULT_CACERT"];
  const api = (method: string, path: string, body?: unknown) =>
    new Promise<unknown>((resolve, reject) => {
      const send = address.startsWith("https:") ? httpsRequest : httpRequest;
      const ca = caFile === undefined ? {} : { ca: readFileSync(caFile) };
      const request = send(`${address}/v1/${path}`, {
        method,
        headers: { "X-Vault-Token": token },
        agent: false,
        ...ca,
      });
      request.on("error", reject);
      request.on("response", (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", reject);
        response.on("end", () => {
          const text = Buffer.concat(chunks).toString();
          if ((response.statusCode ?? 500) < 400) resolve(text === "" ? undefined : JSON.parse(text));
          else reject(new Error(`vault answered ${response.statusCode} to ${method} ${path}: ${text}`));
        });
      });
      request.end(body === undefined ? undefined : JSON.stringify(body));
    });
  return {
    ...server,
    address,
    token,
    caFile,
    api,
    async writeSecret(path, data) {
      await api("POST", `secret/data/${path}`, { data });
    },
  };
}

export interface PostgresServer extends Server {
  /** PEM file of the authority that signed its certificate; undefined without TLS. */
  readonly caFile: string | undefined;
  /** Makes an empty database of its own and returns its address, password included. */
  database(): Promise<string>;
  /** Statements behind everybody's back, as the server's owner, in the database of that address. */
  sql(address: string, statement: string, values?: unknown[]): Promise<Record<string, unknown>[]>;
}

/** PostgreSQL. `fsync`: it waits for the disk, for figures; without, it is quick. */
export async function startPostgres(
  t: Teardown,
  { tls = false, fsync = false }: { tls?: boolean; fsync?: boolean } = {},
): Promise<PostgresServer> {
  const server = await startServer(t, "postgres", [...(tls ? ["--tls"] : []), ...(fsync ? ["--fsync"] : [])]);
  const credentials = `${setting(server, "PGUSER")}:${setting(server, "PGPASSWORD")}`;
  const address = (name: string) => `postgres://${credentials}@127.0.0.1:${setting(server, "PGPORT")}/${name}`;
  const sql: PostgresServer["sql"] = async (of, statement, values = []) => {
    const client = new pg.Client({ connectionString: of.split("?")[0]! });
    await client.connect();
    try {
      return (await client.query(statement, values)).rows as Record<string, unknown>[];
    } finally {
      await client.end();
    }
  };
  return {
    ...server,
    caFile: server.settings["PGSSLROOTCERT"],
    sql,
    async database() {
      const name = `test_${randomUUID().replaceAll("-", "")}`;
      await sql(address("postgres"), `create database ${name}`);
      return address(name);
    },
  };
}
