// The three stages of the configuration: raw (as written), defaulted (every field present), compiled (checked as a whole,
// policy ready to be asked). One pure function each; main.ts alone reads files and the environment.
import { availableParallelism, totalmem } from "node:os";
import { parseDocument, LineCounter, isMap, isNode, isScalar } from "yaml";
import { toConnectorError, type ConnectorError } from "@sallyport/protocol";
import { compilePolicy, defaultPolicy, type CompiledPolicy, type PolicyConfig } from "../policy/index.ts";
import { parseReferences } from "../secrets/reference.ts";
import {
  configInvalid,
  fieldName,
  isSecretField,
  problemsOf,
  type FieldPath,
  type LineOf,
  type Problem,
} from "./problems.ts";
import { configSchema, type RawConfig } from "./schema.ts";

export interface FsStoreConfig {
  id: string;
  kind: "fs";
  root: string;
}
export interface S3StoreConfig {
  id: string;
  kind: "s3";
  endpoint: string;
  region: string;
  bucket: string;
  /** "" or text that ends with a slash. */
  prefix: string;
  pathStyle: boolean;
  ca: string | null;
  /** Text with references, resolved at use. */
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken: string | null;
}
export type StoreConfig = FsStoreConfig | S3StoreConfig;

export interface VaultConfig {
  address: string;
  token: string;
  ca: string | null;
}
export interface SecretsConfig {
  vault: VaultConfig | null;
  /** Name -> text with references. */
  named: Record<string, string>;
}
export interface ProgramConfig {
  path: string;
  /** By digest; null = a program of this machine. */
  image: string | null;
  args: string[];
  env: Record<string, string>;
}
export interface DockerConfig {
  socket: string;
}
export interface ServingConfig {
  /** `host:port`. */
  listen: string;
  /** Null = made from `listen`. */
  advertise: string | null;
  tls: { cert: string; key: string } | null;
  process: { path: string; args: string[]; env: Record<string, string> } | null;
  image: string | null;
}
export interface NatsConfig {
  /** Null: the user's name. */
  name: string | null;
  prefix: string | null;
  /** Path of a PEM file; null: the machine's own list. */
  ca: string | null;
  user: string | null;
  /** These four: text with references, resolved at each dial; one of them at most. */
  password: string | null;
  token: string | null;
  nkey: string | null;
  creds: string | null;
}
export interface LinkConfig {
  /** Of a NATS server; null: a WebSocket to cloud.url. */
  url: string | null;
  nats: NatsConfig;
  /** Tried in turn after cloud.url. */
  addresses: string[];
  /** Null: HTTPS_PROXY. `password`: text with references, resolved at each dial. */
  proxy: { url: string; user: string | null; password: string | null; ca: string | null } | null;
  /** Null: NO_PROXY. */
  noProxy: string[] | null;
  /** Paths of PEM files. */
  clientCertificate: { cert: string; key: string } | null;
  deadAfterMs: number;
  stableAfterMs: number;
  /** 0: only when asked. */
  keyDays: number;
}
export interface LimitsConfig {
  replicas: number;
  servingCpus: number;
  servingMemoryBytes: number;
  modelBytes: number;
  concurrentRuns: number;
  concurrentSteps: number;
  logBytesPerAttempt: number;
  logBytes: number;
  workBytes: number;
  auditBytes: number;
}
export type LogLevel = "trace" | "debug" | "info" | "warn" | "error" | "fatal";

/** Every field present. */
export interface Config {
  /** `url` null: what the enrolment secret says. */
  cloud: { url: string | null; ca: string | null };
  link: LinkConfig;
  state: string;
  labels: Record<string, string>;
  log: { level: LogLevel };
  secrets: SecretsConfig;
  stores: StoreConfig[];
  programs: Record<string, ProgramConfig>;
  /** `docker` null: not used. */
  engines: { docker: DockerConfig | null };
  serving: ServingConfig;
  limits: LimitsConfig;
  /** Null: figures are on the control socket alone. */
  metrics: { listen: string; token: string } | null;
  policy: PolicyConfig;
}

/** What main.ts wires the agent from. */
export interface CompiledConfig {
  readonly config: Config;
  readonly policy: CompiledPolicy;
  /** Sentences for the log: nothing is wrong, but someone should know. */
  readonly warnings: readonly string[];
  /** Where a value came from, by its path. */
  readonly originOf: (path: FieldPath) => string;
}

/** The environment as main.ts hands it over. */
export type Environment = Readonly<Record<string, string | undefined>>;

export interface ParsedFile {
  raw: RawConfig;
  lineOf: LineOf;
  /** For messages: the file's name. */
  source: string;
}

const MIB = 1024 * 1024;
export const DEFAULT_LISTEN = "127.0.0.1:8470";
export const DEFAULT_DOCKER_SOCKET = "/var/run/docker.sock";
export const DEFAULT_LINK = { deadAfterMs: 12_000, stableAfterMs: 60_000, keyDays: 90 };
const NATS_SECRETS = ["password", "token", "nkey", "creds"] as const;
const NO_NATS: NatsConfig = {
  name: null,
  prefix: null,
  ca: null,
  user: null,
  password: null,
  token: null,
  nkey: null,
  creds: null,
};
export const DEFAULT_LIMITS: LimitsConfig = {
  replicas: 16,
  servingCpus: availableParallelism(),
  servingMemoryBytes: Math.floor(totalmem() * 0.75),
  modelBytes: 20 * 1024 * MIB,
  concurrentRuns: 4,
  concurrentSteps: 4,
  logBytesPerAttempt: 64 * MIB,
  logBytes: 2048 * MIB,
  workBytes: 20 * 1024 * MIB,
  auditBytes: 1024 * MIB,
};
export const DEFAULT_STATE = "/var/lib/sallyport";
/** Variables of the environment that take the place of a field. */
const OVERRIDES = [
  { variable: "SALLYPORT_URL", path: ["cloud", "url"] },
  { variable: "SALLYPORT_STATE", path: ["state"] },
  { variable: "SALLYPORT_LOG_LEVEL", path: ["log", "level"] },
] as const;

/** All three stages. `text` null: there is no file, which is fine (no stores, and everything is refused). */
export function loadConfig(text: string | null, source: string, environment: Environment): CompiledConfig {
  const parsed = parseConfig(text ?? "", source);
  return compileConfig(defaultConfig(parsed, environment), parsed, environment);
}

/** Stage one: YAML text to a value of the right shape. Throws CONFIG_INVALID. */
export function parseConfig(text: string, source: string): ParsedFile {
  const lineCounter = new LineCounter();
  const document = parseDocument(text, { lineCounter, prettyErrors: false, stringKeys: true, uniqueKeys: true });
  const fault = document.errors[0] ?? document.warnings[0];
  if (fault !== undefined) {
    const line = lineCounter.linePos(fault.pos[0]).line;
    // The parser's own text may quote the line, which may hold a secret: its code says enough.
    throw configInvalid(
      source,
      [{ path: [], expected: `YAML (fault: ${fault.code.toLowerCase().replaceAll("_", " ")})` }],
      () => line,
    );
  }
  const lineOf: LineOf = (path) => {
    for (let length = path.length; length >= 0; length--) {
      const start = positionOf(path.slice(0, length));
      if (start !== null) return lineCounter.linePos(start).line;
    }
    return null;
  };
  const positionOf = (path: FieldPath): number | null => {
    const parent = path.length === 0 ? null : document.getIn(path.slice(0, -1), true);
    const container = path.length === 1 ? document.contents : parent;
    if (isMap(container)) {
      const key = container.items.find(
        (pair) => isScalar(pair.key) && String(pair.key.value) === String(path.at(-1)),
      )?.key;
      if (isNode(key) && key.range != null) return key.range[0];
    }
    const node = path.length === 0 ? document.contents : document.getIn(path, true);
    return isNode(node) && node.range != null ? node.range[0] : null;
  };
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: 100 }) ?? {};
  } catch {
    throw configInvalid(source, [{ path: [], expected: "YAML without excessive aliases" }], () => null);
  }
  const checked = configSchema.safeParse(value);
  if (!checked.success) throw configInvalid(source, problemsOf(checked.error.issues, value), lineOf);
  return { raw: checked.data, lineOf, source };
}

/** Stage two: every field present. */
export function defaultConfig({ raw }: Pick<ParsedFile, "raw">, environment: Environment): Config {
  const set = (variable: (typeof OVERRIDES)[number]["variable"]): string | undefined =>
    environment[variable] || undefined;
  return {
    cloud: { url: set("SALLYPORT_URL") ?? raw.cloud?.url ?? null, ca: raw.cloud?.ca ?? null },
    link: {
      url: raw.link?.url ?? null,
      nats: { ...NO_NATS, ...definedOf(raw.link?.nats ?? {}) },
      addresses: raw.link?.addresses ?? [],
      deadAfterMs: raw.link?.deadAfterMs ?? DEFAULT_LINK.deadAfterMs,
      stableAfterMs: raw.link?.stableAfterMs ?? DEFAULT_LINK.stableAfterMs,
      keyDays: raw.link?.keyDays ?? DEFAULT_LINK.keyDays,
      proxy:
        raw.link?.proxy === undefined
          ? null
          : {
              url: raw.link.proxy.url,
              user: raw.link.proxy.user ?? null,
              password: raw.link.proxy.password ?? null,
              ca: raw.link.proxy.ca ?? null,
            },
      noProxy: raw.link?.noProxy ?? null,
      clientCertificate: raw.link?.clientCertificate ?? null,
    },
    state: set("SALLYPORT_STATE") ?? raw.state ?? DEFAULT_STATE,
    labels: raw.labels ?? {},
    log: { level: (set("SALLYPORT_LOG_LEVEL") as LogLevel | undefined) ?? raw.log?.level ?? "info" },
    secrets: {
      vault:
        raw.secrets?.vault === undefined
          ? null
          : { address: raw.secrets.vault.address, token: raw.secrets.vault.token, ca: raw.secrets.vault.ca ?? null },
      named: raw.secrets?.named ?? {},
    },
    stores: (raw.stores ?? []).map((s) =>
      s.kind === "fs"
        ? { id: s.id, kind: s.kind, root: s.root }
        : {
            id: s.id,
            kind: s.kind,
            endpoint: s.endpoint,
            region: s.region ?? "us-east-1",
            bucket: s.bucket,
            prefix: s.prefix ?? "",
            pathStyle: s.pathStyle ?? true,
            ca: s.ca ?? null,
            accessKeyId: s.accessKeyId,
            secretAccessKey: s.secretAccessKey,
            sessionToken: s.sessionToken ?? null,
          },
    ),
    programs: Object.fromEntries(
      Object.entries(raw.programs ?? {}).map(([name, p]) => [
        name,
        { path: p.path, image: p.image ?? null, args: p.args ?? [], env: p.env ?? {} },
      ]),
    ),
    engines: {
      docker: raw.engines?.docker === undefined ? null : { socket: raw.engines.docker.socket ?? DEFAULT_DOCKER_SOCKET },
    },
    serving: {
      listen: raw.serving?.listen ?? DEFAULT_LISTEN,
      advertise: raw.serving?.advertise ?? null,
      tls: raw.serving?.tls ?? null,
      process:
        raw.serving?.process === undefined
          ? null
          : {
              path: raw.serving.process.path,
              args: raw.serving.process.args ?? [],
              env: raw.serving.process.env ?? {},
            },
      image: raw.serving?.image ?? null,
    },
    limits: { ...DEFAULT_LIMITS, ...definedOf(raw.limits ?? {}) },
    metrics: raw.metrics ?? null,
    policy: defaultPolicy(raw.policy),
  };
}

const definedOf = <T extends object>(value: T): { [K in keyof T]: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(value).filter(([, v]) => v !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };

/** Stage three: what a schema of single fields cannot see. Throws CONFIG_INVALID. */
export function compileConfig(config: Config, parsed: ParsedFile, environment: Environment): CompiledConfig {
  const problems: Problem[] = [];
  const names = (what: string, known: readonly string[]): string =>
    `${what}${known.length === 0 ? " (there is none)" : `: ${known.join(", ")}`}`;

  for (const { variable, path } of OVERRIDES) {
    const value = environment[variable];
    if (value === undefined || value === "") continue;
    // The same rules as for the field in the file.
    const checked = configSchema.safeParse(path.reduceRight<unknown>((inner, key) => ({ [key]: inner }), value));
    if (!checked.success) {
      const [problem] = problemsOf(checked.error.issues, undefined);
      throw configInvalid(
        `environment variable ${variable}`,
        [{ path, expected: problem!.expected, got: JSON.stringify(value) }],
        () => null,
      );
    }
  }

  const storeIds = config.stores.map((s) => s.id);
  for (const [i, id] of storeIds.entries()) {
    if (storeIds.indexOf(id) !== i)
      problems.push({ path: ["stores", i, "id"], expected: "an id that no other store has", got: JSON.stringify(id) });
  }
  const { policy } = config;
  for (const [i, rule] of policy.stores.entries()) {
    if (!storeIds.includes(rule.store))
      problems.push({
        path: ["policy", "stores", i, "store"],
        expected: names("the id of a store", storeIds),
        got: JSON.stringify(rule.store),
      });
  }
  if (typeof policy.release.raw !== "boolean") {
    for (const [i, rule] of policy.release.raw.entries()) {
      if (!storeIds.includes(rule.store))
        problems.push({
          path: ["policy", "release", "raw", i, "store"],
          expected: names("the id of a store", storeIds),
          got: JSON.stringify(rule.store),
        });
    }
  }
  const named = (list: "programs" | "engines" | "secrets", what: string, known: readonly string[]): void => {
    for (const [i, name] of policy[list].entries()) {
      if (name !== "*" && !known.includes(name))
        problems.push({ path: ["policy", list, i], expected: names(what, known), got: JSON.stringify(name) });
    }
  };
  named("programs", "the name of a program", Object.keys(config.programs));
  // Engines that are there: the policy may name no other.
  named("engines", "an engine", ["process", ...(config.engines.docker === null ? [] : ["docker"])]);
  named("secrets", "a name under secrets.named", Object.keys(config.secrets.named));

  const uses: [FieldPath, string | null][] = [
    ...Object.entries(config.secrets.named).map(([name, text]): [FieldPath, string] => [
      ["secrets", "named", name],
      text,
    ]),
    [["link", "proxy", "password"], config.link.proxy?.password ?? null],
    ...NATS_SECRETS.map((field): [FieldPath, string | null] => [["link", "nats", field], config.link.nats[field]]),
    ...config.stores.flatMap((s, i): [FieldPath, string | null][] =>
      s.kind === "s3"
        ? (["accessKeyId", "secretAccessKey", "sessionToken"] as const).map((field) => [["stores", i, field], s[field]])
        : [],
    ),
    [["metrics", "token"], config.metrics?.token ?? null],
  ];
  const usesVault = (text: string): boolean => {
    const references = parseReferences(text);
    return "parts" in references && references.parts.some((p) => "reference" in p && p.reference.provider === "vault");
  };
  for (const [path, text] of uses) {
    if (text !== null && config.secrets.vault === null && usesVault(text))
      problems.push({ path, expected: "a reference to a configured provider; secrets.vault is not set" });
  }
  if (config.secrets.vault !== null && usesVault(config.secrets.vault.token)) {
    problems.push({
      path: ["secrets", "vault", "token"],
      expected: "a reference to env or file; Vault's token cannot come from Vault",
    });
  }
  if (config.link.proxy !== null && config.link.proxy.user === null && config.link.proxy.password !== null)
    problems.push({ path: ["link", "proxy", "user"], expected: "the user whose password link.proxy.password is" });
  problems.push(...natsProblems(config.link, parsed.raw.link?.nats !== undefined));
  if (problems.length > 0) throw configInvalid(parsed.source, problems, parsed.lineOf);

  const warnings: string[] = [];
  const inClear = (address: string): boolean => {
    const url = new URL(address);
    return url.protocol === "http:" && !isLoopback(url.host);
  };
  if (config.secrets.vault !== null && inClear(config.secrets.vault.address))
    warnings.push("secrets.vault.address is http: the token and every secret cross the network in the clear.");
  const { proxy } = config.link;
  if (proxy !== null && proxy.password !== null && inClear(proxy.url))
    warnings.push("link.proxy.url is http: the proxy's password crosses the network in the clear, as Basic does.");
  for (const [i, s] of config.stores.entries()) {
    if (s.kind === "s3" && inClear(s.endpoint))
      warnings.push(`stores[${i}].endpoint (${s.id}) is http: artifacts cross the network in the clear.`);
  }
  const { serving } = config;
  if (config.engines.docker === null) {
    for (const [name, { image }] of Object.entries(config.programs)) {
      if (image !== null)
        warnings.push(`programs.${name}.image is set, but engines.docker is not: nothing here can start it.`);
    }
    if (serving.image !== null)
      warnings.push("serving.image is set, but engines.docker is not: no replica can be started from it.");
  }
  if (serving.tls === null && (serving.process !== null || serving.image !== null) && !isLoopback(serving.listen))
    warnings.push(
      `serving.listen is ${serving.listen} without serving.tls: keys of endpoints, requests and answers cross the network in the clear.`,
    );
  if (config.metrics !== null && !isLoopback(config.metrics.listen))
    warnings.push(
      `metrics.listen is ${config.metrics.listen}: its token and the figures cross the network in the clear; keep it to a network that you trust, or scrape through a proxy with TLS.`,
    );
  if (policy.commands.length === 0) warnings.push("policy.commands is empty: every command is refused.");
  for (const { path, text } of [
    ...uses.map(([path, text]) => ({ path, text })),
    ...(config.secrets.vault === null
      ? []
      : [{ path: ["secrets", "vault", "token"], text: config.secrets.vault.token }]),
  ]) {
    const references = text === null ? null : parseReferences(text);
    if (references !== null && "parts" in references && !references.parts.some((p) => "reference" in p)) {
      warnings.push(
        `${fieldName(path)} is written in the file itself; a reference such as \${file:/run/secrets/x} keeps it out of backups and repositories.`,
      );
    }
  }

  const originOf = (path: FieldPath): string => {
    const override = OVERRIDES.find((o) => o.path.join("\0") === path.join("\0") && environment[o.variable]);
    if (override !== undefined) return `environment ${override.variable}`;
    const written = path.reduce<unknown>(
      (value, key) =>
        typeof value === "object" && value !== null ? (value as Record<string | number, unknown>)[key] : undefined,
      parsed.raw,
    );
    const line = written === undefined ? null : parsed.lineOf(path);
    return written === undefined ? "default" : `${parsed.source}${line === null ? "" : `:${line}`}`;
  };
  return { config, policy: compilePolicy(policy), warnings, originOf };
}

function natsProblems({ url, nats }: LinkConfig, isSet: boolean): Problem[] {
  const at = (field: string): FieldPath => ["link", "nats", field];
  if (url === null) return isSet ? [{ path: ["link", "url"], expected: "the NATS server that link.nats is for" }] : [];
  const problems: Problem[] = [];
  if (url.startsWith("nats:") && !isLoopback(new URL(url).host))
    problems.push({
      path: ["link", "url"],
      expected: "tls:// or wss+nats:// for another machine; nats:// has no TLS and is for loopback only",
    });
  if ((nats.user === null) !== (nats.password === null))
    problems.push({ path: at(nats.user === null ? "user" : "password"), expected: "user and password together" });
  const given = NATS_SECRETS.filter((field) => nats[field] !== null);
  if (given.length > 1) problems.push({ path: at(given[1]!), expected: `no other login beside link.nats.${given[0]}` });
  // A credentials file says its user's name itself.
  if (nats.name === null && nats.user === null && nats.creds === null)
    problems.push({ path: at("name"), expected: "the agent's part of the subjects, which this login does not tell" });
  return problems;
}

/** `host`, with or without a port. */
const isLoopback = (host: string): boolean => /^(?:127(?:\.\d{1,3}){3}|\[::1\]|localhost)(?::\d+)?$/.test(host);

export interface Reloaded {
  /** The new one, or the old one when the new text is invalid. */
  current: CompiledConfig;
  problem: ConnectorError | null;
  /** Top-level sections that changed and take effect only at the next start. */
  needRestart: string[];
}

/** What SIGHUP does: an invalid text changes nothing. */
export function reload(
  old: CompiledConfig,
  newText: string | null,
  source: string,
  environment: Environment,
): Reloaded {
  let current: CompiledConfig;
  try {
    current = loadConfig(newText, source, environment);
  } catch (error) {
    return { current: old, problem: toConnectorError(error), needRestart: [] };
  }
  const changed = (section: keyof Config): boolean =>
    JSON.stringify(old.config[section]) !== JSON.stringify(current.config[section]);
  return {
    current,
    problem: null,
    needRestart: (["cloud", "link", "state", "log", "engines", "serving", "limits", "metrics"] as const).filter(
      changed,
    ),
  };
}

export const STARS = "********";

/** The configuration with secrets as stars. A reference is no secret: it stays, so that people can see where one comes from. */
export function withStars(config: Config): unknown {
  const visit = (value: unknown, path: FieldPath): unknown => {
    if (Array.isArray(value)) return value.map((item, i) => visit(item, [...path, i]));
    if (typeof value === "object" && value !== null)
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, visit(v, [...path, k])]));
    if (typeof value !== "string") return value;
    const guarded =
      (path[0] === "programs" || path[0] === "serving") &&
      path.includes("env") &&
      /key|token|secret|pass|credential/i.test(String(path.at(-1)));
    if (!guarded && !isSecretField(path, config)) return value;
    const parsed = parseReferences(value);
    return "parts" in parsed && parsed.parts.every((p) => "reference" in p) ? value : STARS;
  };
  return visit(config, []);
}
