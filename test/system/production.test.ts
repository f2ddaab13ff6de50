// packaging/compose/production.yaml brought up as it stands, on a real Docker Engine: our image, and in the place of the
// three that a registry would give PostgreSQL, nats-server and HAProxy of this machine under the same names. Then an agent,
// a download, and one of the two processes is killed.
import { createHash, randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import type Docker from "dockerode";
import t from "tap";
import { TestApi } from "../support/api.ts";
import { buildImage } from "../support/built-image.ts";
import { Composition, docker as client } from "../support/compose.ts";
import { repository, tempDir, waitFor } from "../support/launcher.ts";
import { startDocker } from "../support/servers/docker.ts";
import { busyboxFiles, importImage, machineFiles } from "../support/servers/images.ts";
import type { ProcessesAnswer } from "../support/several.ts";
import { needs } from "../support/skip.ts";
import { CEILINGS, CloudClient, connectAgent, freePort } from "../support/stack.ts";

const NOBODY = 65534;
/** What the image of the registry does with these three variables. */
const POSTGRES_ENTRY = (bin: string): string => `#!/bin/sh
set -e
cd /tmp
data=/var/lib/postgresql/data
if ! test -s $data/PG_VERSION; then
  ${bin}/initdb -D $data -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust \\
    --auth-host=scram-sha-256 --no-locale --encoding=UTF8 --no-sync
  echo "host all all all scram-sha-256" >>$data/pg_hba.conf
  echo "create database \\"$POSTGRES_DB\\"" | ${bin}/postgres --single -D $data postgres
fi
exec ${bin}/postgres -D $data -c "listen_addresses=*"
`;

function filesUnder(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
}

async function standIns(docker: Docker): Promise<void> {
  const versions = readdirSync("/usr/lib/postgresql").toSorted((a, b) => Number(a) - Number(b));
  const version = versions.findLast((one) => readdirSync(`/usr/lib/postgresql/${one}/bin`).includes("initdb"))!;
  const bin = `/usr/lib/postgresql/${version}/bin`;
  const libraries = ["dict_snowball.so", "plpgsql.so"].map((name) => `/usr/lib/postgresql/${version}/lib/${name}`);
  await importImage(
    docker,
    "postgres",
    [
      ...busyboxFiles(),
      ...machineFiles(...["initdb", "postgres", "pg_isready"].map((name) => `${bin}/${name}`), ...libraries),
      ...filesUnder(`/usr/share/postgresql/${version}`).map((path) => ({
        path: path.slice(1),
        bytes: readFileSync(path),
        mode: 0o644,
      })),
      { path: "entry.sh", bytes: POSTGRES_ENTRY(bin) },
      { path: "var/lib/postgresql/data", bytes: null, owner: NOBODY, mode: 0o700 },
      { path: "var/run/postgresql", bytes: null, owner: NOBODY },
    ],
    [`ENV PATH=${bin}:/bin TZ=GMT`, `USER ${NOBODY}:${NOBODY}`, `ENTRYPOINT ["/entry.sh"]`],
    "17",
  );
  const servers = process.env["SALLYPORT_SERVERS_CACHE"] ?? join(process.env["HOME"] ?? "", ".cache/sallyport-servers");
  const nats = execFileSync("sh", ["-c", "command -v nats-server"], {
    encoding: "utf8",
    env: { PATH: `${join(servers, "bin")}:${process.env["PATH"]}` },
  }).trim();
  const [program, ...libs] = machineFiles(nats);
  await importImage(
    docker,
    "nats",
    [...busyboxFiles(), { ...program!, path: "nats-server" }, ...libs],
    [`ENTRYPOINT ["/nats-server"]`],
    "2",
  );
  await importImage(
    docker,
    "haproxy",
    [...busyboxFiles(), ...machineFiles("/usr/sbin/haproxy")],
    [
      `USER ${NOBODY}:${NOBODY}`,
      `ENTRYPOINT ["/usr/sbin/haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]`,
    ],
    "3.0",
  );
}

t.setTimeout(600_000);
const skip = needs("docker", "postgres", "nats", "haproxy");
t.test("production.yaml", { skip, timeout: 540_000 }, async (t) => {
  const engine = await startDocker(t);
  const docker = (...args: string[]) => client(engine.socket, ...args);
  await Promise.all([buildImage(engine.socket, "cloud"), standIns(engine.docker)]);
  const file = join(repository, "packaging/compose/production.yaml");
  t.throws(() => new Composition(engine.socket, file), /SALLYPORT_HOST is not set/);
  const port = await freePort();
  const compose = new Composition(engine.socket, file, {
    environment: { SALLYPORT_HOST: `localhost:${port}` },
    publish: { 8443: port },
  });
  for (const [name, service] of Object.entries(compose.services)) {
    t.match(service, { security_opt: ["no-new-privileges:true"] }, name);
    if (name !== "database") t.match(service, { read_only: true, cap_drop: ["ALL"] }, name);
    t.equal(service.ports === undefined, name !== "balancer", `${name}: only the balancer is reached from outside`);
  }
  const logs = async () =>
    (
      await Promise.all(
        Object.keys(compose.services).map(async (name) =>
          docker("logs", "--tail", "20", compose.container(name)).catch((error: unknown) => String(error)),
        ),
      )
    ).join("\n");
  try {
    await compose.up();
  } catch (cause) {
    throw new Error(await logs(), { cause });
  }

  const url = `https://localhost:${port}`;
  const ca = join(tempDir(t, "ca"), "ca.crt");
  await docker("cp", `${compose.container("cloud-1")}:/run/keys/ca.crt`, ca);
  const api = new TestApi(url, readFileSync(ca, "utf8"));
  await waitFor("the balancer to have somebody", async () => (await api.call("/readyz")).status === 200).catch(
    async (cause: unknown) => {
      throw new Error(await logs(), { cause });
    },
  );
  const reset = ["sallyport-cloud", "admin", "reset", "--config", "/run/shared/cloud.yaml"];
  await api.signIn(await docker("exec", compose.container("cloud-1"), ...reset));
  const cloud = new CloudClient(url, api);
  const seen = () => api.json<ProcessesAnswer>("/v1/processes");
  const both = async (): Promise<boolean> => {
    const { items, backplane } = await seen();
    return backplane.connected && items.length === 2 && items.every((one) => one.state !== "unreachable");
  };
  await waitFor("the two to be linked", both);
  t.match(await seen(), { backplane: { kind: "nats" } });
  t.equal((await seen()).items.find((one) => !one.self)!.way, "direct");

  const content = randomBytes(8 * 2 ** 20);
  const store = tempDir(t, "store");
  writeFileSync(join(store, "big.bin"), content);
  await connectAgent(t, cloud, "lab", {
    url,
    config: `
link: { stableAfterMs: 0 }
stores: [{ id: box, kind: fs, root: ${store} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: box, read: ["**"] }]
  release: { metadata: true, raw: true }
`,
  });
  const download = async (): Promise<boolean> => {
    const answer = await api.call("/v1/pools/lab/stores/box/content?path=big.bin");
    return (
      createHash("sha256").update(answer.body).digest("hex") === createHash("sha256").update(content).digest("hex")
    );
  };
  // Each connection may come to either process.
  for (let n = 0; n < 6; n++) t.ok(await download(), "a download");

  const { items } = await seen();
  const holder = items.find((one) => one.sessions === 1)!.id.split(":")[0]!;
  t.match(holder, /^cloud-[12]$/);
  await docker("kill", compose.container(holder));
  const began = performance.now();
  await waitFor("it to be served by the other", download);
  t.comment(`served again ${Math.round(performance.now() - began)} ms after ${holder} was killed`);
  await docker("start", compose.container(holder));
  await waitFor("both to be there again", both);
  t.ok(await download());

  await Promise.all(["cloud-1", "cloud-2"].map((name) => docker("stop", compose.container(name))));
  for (const name of ["cloud-1", "cloud-2"])
    t.equal(
      await docker("inspect", "--format", "{{.State.ExitCode}}", compose.container(name)),
      "0",
      `${name} ended well`,
    );
  await compose.up();
  await waitFor("the agent to be back after all were stopped", download);
  for (const name of Object.keys(compose.services)) await docker("rm", "--force", compose.container(name));
});
