// The policy, compiled. `decide` is pure: same policy, same action, same verdict. A refusal says which rule decided, why,
// and which line of the configuration would allow it.
import { createHash } from "node:crypto";
import { ConnectorError } from "@sallyport/protocol";
import type { Ceiling, PolicyAction, PolicyGuard, Verdict } from "./action.ts";
import { compileGlob, globLeadsTo, globMatches, pathSegments, type Glob } from "./globs.ts";
import type { PolicyConfig } from "./policy-config.ts";

type Access = "read" | "write" | "delete";
type Grants = Record<Access, Glob[]> & { store: string };

export interface Policy {
  readonly config: PolicyConfig;
  readonly stores: readonly Grants[];
  /** Null = `raw` is a yes or no for everything. */
  readonly raw: readonly { store: string; paths: Glob[] }[] | null;
}

/** The guard, and what only main.ts, status and `policy show` want to know. */
export interface CompiledPolicy extends PolicyGuard {
  readonly policy: Policy;
  /** What is granted somewhere in the store. */
  grants(store: string): Access[];
  /** Those of `kinds` that may be asked for. */
  allowedCommands(kinds: readonly string[]): string[];
}

export function compilePolicy(config: PolicyConfig): CompiledPolicy {
  const policy: Policy = {
    config,
    stores: config.stores.map((s) => ({
      store: s.store,
      read: s.read.map(compileGlob),
      write: s.write.map(compileGlob),
      delete: s.delete.map(compileGlob),
    })),
    raw:
      typeof config.release.raw === "boolean"
        ? null
        : config.release.raw.map((r) => ({ store: r.store, paths: r.paths.map(compileGlob) })),
  };
  const digest = createHash("sha256").update(canonical(config)).digest("hex");
  return {
    policy,
    digest,
    previewRows: config.release.previews === false ? 0 : config.release.previews.rows,
    limit: (ceiling: Ceiling) => config.ceilings[ceiling],
    decide: (action) => decide(policy, action),
    require: (action) => requireVerdict(decide(policy, action), action),
    grants: (store) =>
      (["read", "write", "delete"] as const).filter((access) =>
        policy.stores.some((s) => s.store === store && s[access].length > 0),
      ),
    allowedCommands: (kinds) => kinds.filter((command) => decide(policy, { kind: "command", command }).allowed),
  };
}

/** A guard whose policy can be exchanged while others hold it: what a reload of the configuration does. */
export class LivePolicy implements CompiledPolicy {
  #current: CompiledPolicy;

  constructor(current: CompiledPolicy) {
    this.#current = current;
  }
  replace(next: CompiledPolicy): void {
    this.#current = next;
  }
  get policy(): Policy {
    return this.#current.policy;
  }
  get digest(): string {
    return this.#current.digest;
  }
  get previewRows(): number {
    return this.#current.previewRows;
  }
  limit(ceiling: Ceiling): number {
    return this.#current.limit(ceiling);
  }
  decide(action: PolicyAction): Verdict {
    return this.#current.decide(action);
  }
  require(action: PolicyAction): void {
    this.#current.require(action);
  }
  grants(store: string): Access[] {
    return this.#current.grants(store);
  }
  allowedCommands(kinds: readonly string[]): string[] {
    return this.#current.allowedCommands(kinds);
  }
}

function requireVerdict(verdict: Verdict, action: PolicyAction): void {
  if (verdict.allowed) return;
  throw new ConnectorError("POLICY_DENIED", verdict.reason, {
    fix: verdict.fix,
    details: { rule: verdict.rule, action },
  });
}

export function decide(policy: Policy, action: PolicyAction): Verdict {
  switch (action.kind) {
    case "command":
      return decideCommand(policy, action.command);
    case "store":
      return decideStore(policy, action);
    case "release":
      return decideRelease(policy, action);
    case "program":
      return decideName(
        "programs",
        policy.config.programs,
        action.program,
        `start the program ${quote(action.program)}`,
      );
    case "engine":
      return decideName("engines", policy.config.engines, action.engine, `use the engine ${quote(action.engine)}`);
    case "secret":
      return decideName(
        "secrets",
        policy.config.secrets,
        action.secret,
        `give a step or replica the secret ${quote(action.secret)}`,
      );
    case "image":
      return decideImage(policy.config.images, action.image);
    case "network":
      return decideName(
        "networks",
        policy.config.networks,
        action.network,
        `put a step on the network ${quote(action.network)}`,
      );
    case "predict":
      return decidePredict(policy.config.release.predict, action.deployment);
    case "ceiling": {
      const limit = policy.config.ceilings[action.ceiling];
      const rule = `policy.ceilings.${action.ceiling}`;
      if (action.value <= limit) return allow(rule);
      const unit = action.ceiling.endsWith("Ms") ? " ms" : action.ceiling.endsWith("Bytes") ? " bytes" : "";
      return {
        allowed: false,
        rule: limit === 0 ? `${rule} (default)` : rule,
        reason: `The agent's policy allows ${action.ceiling} of at most ${limit}${unit}; ${action.value}${unit} were asked for.`,
        fix: fixOf(
          `policy: { ceilings: { ${action.ceiling}: ${Math.max(action.value, limit === 0 ? USUAL[action.ceiling] : 0)} } }`,
        ),
      };
    }
  }
}

/** Proposed where nothing is set, so that mending one refusal does not lead to the next. */
const USUAL: Record<Ceiling, number> = {
  concurrentRuns: 2,
  concurrentSteps: 2,
  stepTimeoutMs: 3_600_000,
  stepsPerRun: 100,
  uploadBytes: 1_073_741_824,
  streams: 32,
  deployments: 10,
  replicas: 3,
  cpus: 2,
  memoryBytes: 2_147_483_648,
};

const allow = (rule: string): Verdict => ({ allowed: true, rule, reason: "", fix: "" });
const quote = (text: string): string => JSON.stringify(text);
/** `line` is YAML from the top of the file, in one line: to be merged with what is there. */
const fixOf = (line: string): string =>
  `Whoever runs the agent can allow it by adding to its configuration \`${line}\` and reloading the agent.`;

function decideCommand(policy: Policy, command: string): Verdict {
  const index = policy.config.commands.findIndex(
    (p) => p === "*" || p === command || (p.endsWith(".*") && command.startsWith(p.slice(0, -1))),
  );
  if (index !== -1) return allow(`policy.commands[${index}]`);
  return {
    allowed: false,
    rule: "policy.commands (default)",
    reason: `The agent's policy does not allow the command ${command}.`,
    fix: fixOf(`policy: { commands: [${quote(command)}] }`),
  };
}

function decideName(
  list: "programs" | "engines" | "secrets" | "networks",
  allowed: readonly string[],
  name: string,
  wish: string,
): Verdict {
  const index = allowed.findIndex((a) => a === "*" || a === name);
  if (index !== -1) return allow(`policy.${list}[${index}]`);
  return {
    allowed: false,
    rule: `policy.${list} (default)`,
    reason: `The agent's policy does not let it ${wish}.`,
    fix: fixOf(`policy: { ${list}: [${quote(name)}] }`),
  };
}

function decideImage(allowed: readonly string[], image: string): Verdict {
  // By prefix only what is pinned: the pattern says whose, the digest says which. A name with a dot segment is nobody's.
  const [name, ...rest] = image.split("@");
  const wellFormed = rest.length === 0 || name!.split("/").every((s) => s !== "" && s !== "." && s !== "..");
  const index = wellFormed
    ? allowed.findIndex((a) => (a.endsWith("*") ? image.startsWith(a.slice(0, -1)) : a === image))
    : -1;
  if (index !== -1) return allow(`policy.images[${index}]`);
  if (!wellFormed) {
    return {
      allowed: false,
      rule: "policy.images",
      reason: `${quote(image)} is no name of an image: it has an empty or a dot segment.`,
      fix: "Name the image as its registry does.",
    };
  }
  return {
    allowed: false,
    rule: allowed.length === 0 ? "policy.images (default)" : "policy.images",
    reason: `The agent's policy does not let it run the image ${quote(image)}.`,
    fix: fixOf(`policy: { images: [${quote(image)}] }`),
  };
}

function decidePredict(granted: boolean | readonly string[], deployment: string): Verdict {
  if (granted === true || (Array.isArray(granted) && granted.includes(deployment)))
    return allow("policy.release.predict");
  return {
    allowed: false,
    rule: granted === false ? "policy.release.predict (default)" : "policy.release.predict",
    reason: `The agent's policy does not let predictions of ${quote(deployment)} leave the network.`,
    fix: fixOf(`policy: { release: { predict: [${quote(deployment)}] } }`),
  };
}

function decideStore(policy: Policy, action: Extract<PolicyAction, { kind: "store" }>): Verdict {
  const { access, store, path } = action;
  const granted: Access = access === "list" ? "read" : access;
  const segments = pathSegments(path);
  const wellFormed = segments.every((s) => s !== "" && s !== "." && s !== "..");
  let lastRule: string | null = null;
  for (const [i, rule] of policy.stores.entries()) {
    if (rule.store !== store) continue;
    lastRule = `policy.stores[${i}].${granted}`;
    if (!wellFormed) continue;
    const at = rule[granted].findIndex((g) =>
      access === "list" ? globLeadsTo(g, segments) : globMatches(g, segments),
    );
    if (at !== -1) return allow(`${lastRule}[${at}]`);
  }
  const where = path === "" ? `the root of store ${store}` : `${quote(path)} in store ${store}`;
  return {
    allowed: false,
    rule: lastRule ?? "policy.stores (default)",
    reason: `The agent's policy does not let it ${access} ${where}.`,
    fix: fixOf(`policy: { stores: [{ store: ${store}, ${granted}: [${quote(path === "" ? "**" : path)}] }] }`),
  };
}

function decideRelease(policy: Policy, action: Extract<PolicyAction, { kind: "release" }>): Verdict {
  const { release } = policy.config;
  const refuse = (rule: string, what: string, line: string): Verdict => ({
    allowed: false,
    rule,
    reason: `The agent's policy does not let ${what} leave the network.`,
    fix: fixOf(`policy: { release: { ${line} } }`),
  });
  switch (action.what) {
    case "metadata":
      if (release.metadata) return allow("policy.release.metadata");
      return refuse("policy.release.metadata (default)", "names, sizes and types of artifacts", "metadata: true");
    case "preview":
      if (release.previews !== false) return allow("policy.release.previews");
      return refuse("policy.release.previews (default)", "previews of artifacts", "previews: { rows: 200 }");
    case "logs":
      if (release.logs) return allow("policy.release.logs");
      return refuse("policy.release.logs (default)", "logs of steps", "logs: true");
    case "raw": {
      if (release.raw === true) return allow("policy.release.raw");
      const segments = action.path === undefined ? null : pathSegments(action.path);
      for (const [i, rule] of (policy.raw ?? []).entries()) {
        if (rule.store !== action.store || segments === null) continue;
        const at = rule.paths.findIndex((g) => globMatches(g, segments));
        if (at !== -1) return allow(`policy.release.raw[${i}].paths[${at}]`);
      }
      const what =
        action.path === undefined || action.store === undefined
          ? "artifacts' own bytes"
          : `the bytes of ${quote(action.path)} in store ${action.store}`;
      const line =
        action.path === undefined || action.store === undefined
          ? "raw: true"
          : `raw: [{ store: ${action.store}, paths: [${quote(action.path === "" ? "**" : action.path)}] }]`;
      return refuse(
        policy.raw === null || policy.raw.length === 0 ? "policy.release.raw (default)" : "policy.release.raw",
        what,
        line,
      );
    }
  }
}

/** JSON with keys in order, so that the digest does not depend on how the file was laid out. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${entries.map(([k, v]) => `${JSON.stringify(k)}:${canonical(v)}`).join(",")}}`;
  }
  return JSON.stringify(value);
}
