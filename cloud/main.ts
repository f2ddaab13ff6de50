// sallyport-cloud: the control plane's program. Reads flags, environment and file, starts or asks, answers on stdout.
import { X509Certificate } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { certificateFingerprint, ConnectorError, nameSchema, systemClock, toConnectorError } from "@sallyport/protocol";
import { Command, Option } from "commander";
import { Authenticator, signInUrl } from "./auth/index.ts";
import { loadConfig, OPTIONS, publicUrlOf, type CloudConfig, type OptionName } from "./config/index.ts";
import { newEnrolment } from "./features/agents/index.ts";
import { loadKeyRing, makeSharedAuthority, ownTls, readPrivateFile, writePrivateFile } from "./keys/index.ts";
import {
  backupStore,
  DATABASE_FILE,
  lockDatabase,
  openStore,
  restoreStore,
  type DatabaseLock,
  type Scope,
  type Store,
  type UserRow,
} from "./store/index.ts";
import { PUBLIC_URL_FILE, SIGN_IN_FILE, startCloud } from "./wiring/cloud.ts";
import { lockData } from "./wiring/data-lock.ts";
import { makeLogger } from "./wiring/logger.ts";
import { shareAuthority } from "./wiring/several.ts";

const { version } = JSON.parse(readFileSync(new URL("./package.json", import.meta.url), "utf8")) as { version: string };
// A reader that has seen enough (`| head`) is no fault of ours.
process.stdout.on("error", () => {});
const say = (text: string): void => void process.stdout.write(`${text}\n`);

/** Exit codes: 0 as asked, 1 a fault, 2 the configuration or the command line is wrong. */
function fail(value: unknown): never {
  const error = toConnectorError(value);
  process.stderr.write(`sallyport-cloud: ${error.message}\n${error.fix === undefined ? "" : `  ${error.fix}\n`}`);
  if (error.code === "INTERNAL")
    process.stderr.write(`${error.cause instanceof Error ? error.cause.stack : String(error.cause)}\n`);
  process.exit(error.code === "CONFIG_INVALID" ? 2 : 1);
}

function withOptions(command: Command): Command {
  command.addOption(new Option("--config <file>", "YAML file with options").env("SALLYPORT_CLOUD_CONFIG"));
  for (const option of Object.values(OPTIONS))
    command.addOption(new Option(`--${option.flag} ${option.argument}`, `${option.text} (${option.variable})`));
  return command;
}

function configOf(given: Record<string, unknown>): CloudConfig {
  const camel = (flag: string) => flag.replace(/-([a-z])/g, (_match, letter: string) => letter.toUpperCase());
  const flags: Partial<Record<OptionName, unknown>> = {};
  for (const [name, option] of Object.entries(OPTIONS) as [OptionName, { flag: string }][])
    flags[name] = given[camel(option.flag)];
  return loadConfig({ flags, environment: process.env, file: (given["config"] as string | undefined) ?? null });
}

async function run(given: Record<string, unknown>): Promise<void> {
  const config = configOf(given);
  const log = makeLogger(config.logLevel, process.stderr.isTTY);
  const fatal = (error: unknown, what: string): void => {
    log.fatal({ err: error }, what);
    log.flush(() => process.exit(1));
    setTimeout(() => process.exit(1), 500);
  };
  process.on("uncaughtException", (error) => fatal(error, "a fault that nothing caught; stopping"));
  process.on("unhandledRejection", (error) => fatal(error, "a failure that nothing waited for; stopping"));
  const cloud = await startCloud(
    config,
    version,
    log,
    (error) => fatal(error.cause ?? error, error.message),
    process.env,
  );

  let stopping = false;
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      if (stopping) return process.exit(1);
      stopping = true;
      log.info({ signal }, "stopping: no new work; what is under way may finish");
      cloud.stop().then(
        () => {
          log.info("stopped");
          log.flush(() => process.exit(0));
          setTimeout(() => process.exit(0), 500);
        },
        (error: unknown) => fatal(error, "could not stop cleanly"),
      );
    });
  }
  say(`Sallyport ${version} is ready at ${cloud.url}`);
  if (cloud.caFile !== null) say(`Its certificate is signed by its own CA: ${cloud.caFile}`);
  if (cloud.signInUrl !== null) {
    // Where stdout is collected by something, the link goes by file only.
    if (process.stdout.isTTY) say(`Sign in (works once, for 15 minutes):\n  ${cloud.signInUrl}`);
    else say(`A sign-in link (works once, for 15 minutes) is in ${join(config.data, SIGN_IN_FILE)}`);
  }
}

/** Works on the database itself, whether or not the control plane runs. */
async function withStore(
  given: Record<string, unknown>,
  work: (config: CloudConfig, store: Store, admin: UserRow) => Promise<void>,
): Promise<void> {
  const config = configOf(given);
  if (config.database === null && !existsSync(join(config.data, DATABASE_FILE))) {
    throw new ConnectorError("CONFIG_INVALID", `There is no database in ${config.data}.`, {
      fix: "Name the data directory of the control plane by --data, and its user by sudo -u.",
    });
  }
  const store = await openStore({ dir: config.data, database: config.database });
  try {
    await work(config, store, await store.ensureAdmin(config.admin, config.workspace));
  } finally {
    await store.close();
  }
}

const adminReset = (given: Record<string, unknown>): Promise<void> =>
  withStore(given, async (config, store, admin) => {
    const secret = await new Authenticator(store, systemClock).offerSignIn(admin);
    const known = join(config.data, PUBLIC_URL_FILE);
    const base =
      config.url ?? (existsSync(known) ? readFileSync(known, "utf8").trim() : publicUrlOf(config, config.listen.port));
    const url = signInUrl(base, secret);
    writePrivateFile(join(config.data, SIGN_IN_FILE), `${url}\n`);
    say(url);
  });

/** What several processes share, made once: two key rings and a certificate authority. */
async function makeKeys(folder: string): Promise<void> {
  const at = resolve(folder);
  const now = systemClock.now();
  for (const name of ["identity.json", "command.json", "ca.crt", "ca.key"])
    if (existsSync(join(at, name)))
      throw new ConnectorError("CONFIG_INVALID", `There is a ${name} in ${at} already.`, {
        fix: "Name an empty folder. Keys that agents know are never replaced.",
      });
  loadKeyRing(join(at, "identity.json"), "identity", now);
  loadKeyRing(join(at, "command.json"), "command", now);
  await makeSharedAuthority(at, now);
  say(`Made in ${at}: give every process of the control plane a copy by --keys, and nobody else.`);
}

/** For a server beside the control plane, such as NATS: clients of the same authority trust it. Made anew each time. */
async function makeCertificate(keys: string, folder: string, names: string[]): Promise<void> {
  const passing = mkdtempSync(join(tmpdir(), "sallyport-certificate-"));
  try {
    shareAuthority(resolve(keys), passing);
    const { cert, key } = await ownTls(passing, names, systemClock.now());
    writePrivateFile(join(resolve(folder), "server.key"), key);
    writePrivateFile(join(resolve(folder), "server.crt"), cert);
    writePrivateFile(join(resolve(folder), "ca.crt"), readPrivateFile(join(passing, "ca.crt"))!);
  } finally {
    rmSync(passing, { recursive: true, force: true });
  }
}

/** For set-ups without a person: with `--once` a pool that an agent has joined gets no further secret. */
const adminEnroll = (pool: string, given: Record<string, unknown>): Promise<void> =>
  withStore(given, async (config, store, admin) => {
    if (!nameSchema.safeParse(pool).success)
      throw new ConnectorError("CONFIG_INVALID", `${JSON.stringify(pool)} is no name for a pool.`, {
        fix: "Lower-case letters, digits and hyphens.",
      });
    const scope: Scope = {
      workspace: admin.workspace,
      actor: { id: admin.id, name: "sallyport-cloud admin enroll", via: "system" },
    };
    if (given["once"] === true) {
      const joined = (await store.replicas(scope)).find((row) => row.poolName === pool && row.revokedAt === null);
      if (joined !== undefined) {
        process.stderr.write(`${joined.name} has joined the pool ${pool} already: no secret is made.\n`);
        return;
      }
    }
    const now = systemClock.now();
    // Read, never made: a certificate made here would be for this command's host name.
    const ca = config.tls.kind === "own" ? readPrivateFile(join(config.data, "tls/ca.crt")) : null;
    if (ca === null && config.tls.kind === "own")
      throw new ConnectorError("CONFIG_INVALID", `There is no certificate authority in ${config.data} yet.`, {
        fix: "Start the control plane once: it makes its own.",
      });
    const { fingerprint } = loadKeyRing(
      join(config.keys ?? join(config.data, "keys"), "identity.json"),
      "identity",
      now,
      config.keys !== null,
    );
    const caFingerprint = ca === null ? null : certificateFingerprint(new X509Certificate(ca).raw);
    const trust = { identityFingerprint: fingerprint, caFingerprint };
    const { secret } = await newEnrolment(store, scope, { pool, name: null, now, trust, idempotency: null });
    const file = given["out"] as string | undefined;
    if (file === undefined) say(secret);
    else writePrivateFile(resolve(file), `${secret}\n`);
  });

const placeOf = ({ data, database }: CloudConfig) => ({ dir: data, database });

/** Online: whether or not the control plane runs. */
async function backup(file: string, given: Record<string, unknown>): Promise<void> {
  const config = configOf(given);
  const { rows } = await backupStore(placeOf(config), resolve(file), systemClock.now());
  say(`${rows} rows are in ${resolve(file)}. Keep ${join(config.data, "keys")} beside it: agents trust no other keys.`);
}

async function restore(file: string, given: Record<string, unknown>): Promise<void> {
  const config = configOf(given);
  // Refused while the control plane runs.
  const lock = lockData(config.data);
  let one: DatabaseLock | null = null;
  try {
    if (config.database !== null)
      one = await lockDatabase(config.database, { patient: false, onLost: (error) => fail(error) });
    const replace = given["replace"] === true;
    const { rows, madeAt, kept } = await restoreStore(placeOf(config), resolve(file), systemClock.now(), { replace });
    say(`${rows} rows of ${new Date(madeAt).toISOString()} are restored. Everybody signs in anew.`);
    if (kept !== null) say(`What was there before is kept: ${kept}`);
    if (!existsSync(join(config.data, "keys/identity.json")))
      say(
        `There are no keys in ${join(config.data, "keys")}: put the kept ones there before the start, or agents will refuse it.`,
      );
  } finally {
    await one?.release();
    lock.release();
  }
}

function configShow(given: Record<string, unknown>): void {
  const config = configOf(given);
  for (const { name, value, origin } of config.origins)
    say(`${name}: ${JSON.stringify(value)}${given["origin"] === true ? `  # ${origin}` : ""}`);
}

const guarded =
  <Given extends unknown[]>(work: (...given: Given) => void | Promise<void>) =>
  async (...given: Given) => {
    try {
      await work(...given);
    } catch (error) {
      fail(error);
    }
  };

const program = new Command("sallyport-cloud")
  .description("The control plane of Sallyport")
  .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : 2));
withOptions(program.command("run").description("start the control plane")).action(guarded(run));
withOptions(
  program
    .command("config")
    .description("about the configuration")
    .command("show")
    .description("print every option's value")
    .option("--origin", "also say where each came from"),
).action(guarded(configShow));
const admin = program.command("admin").description("about the admin, on the control plane's own disk");
withOptions(admin.command("reset").description("print a new one-time sign-in link")).action(guarded(adminReset));
withOptions(
  admin
    .command("enroll <pool>")
    .description("print a secret that lets one agent join the pool, once, within an hour")
    .option("--out <file>", "write it to a file for its owner alone, instead")
    .option("--once", "make none when an agent has joined the pool"),
).action(guarded(adminEnroll));
withOptions(
  program
    .command("backup <file>")
    .description("write the database to a file, while the control plane runs or not; its keys are kept apart"),
).action(guarded(backup));
withOptions(
  program
    .command("restore <file>")
    .description("fill the database from such a file, while the control plane stands still")
    .option("--replace", "put it in the place of a database that is there"),
).action(guarded(restore));
program
  .command("keys <folder>")
  .description("make the keys that several processes of one control plane share, once")
  .action(guarded(makeKeys));
program
  .command("certificate <keys> <folder> <name...>")
  .description("make a certificate for a server beside the control plane, by the authority in the folder of keys")
  .action(guarded(makeCertificate));
program
  .command("version")
  .description("print the version")
  .action(() => say(version));
await program.parseAsync();
