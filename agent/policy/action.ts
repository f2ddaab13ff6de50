// What the policy is asked about. Everything the agent does for the cloud is one of these.

export type PolicyAction =
  | { kind: "command"; command: string }
  /** `list` and `stat` are granted by read or by a path above a readable one. */
  | { kind: "store"; access: "list" | "read" | "write" | "delete"; store: string; path: string }
  /** What may leave the network. `raw`: an artifact's own bytes. */
  | { kind: "release"; what: "metadata" | "preview" | "raw" | "logs"; store?: string; path?: string }
  /** Requests to a deployment and their answers, through the link. */
  | { kind: "predict"; deployment: string }
  | { kind: "program"; program: string }
  | { kind: "engine"; engine: string }
  /** An image that the command names, by digest. */
  | { kind: "image"; image: string }
  /** A network of the engine that a step is put on. */
  | { kind: "network"; network: string }
  /** A secret given to a step, by the name that the command uses. */
  | { kind: "secret"; secret: string }
  | { kind: "ceiling"; ceiling: Ceiling; value: number };

export type Ceiling =
  | "concurrentRuns"
  | "concurrentSteps"
  | "stepTimeoutMs"
  | "stepsPerRun"
  | "uploadBytes"
  | "streams"
  /** Deployments of this agent. */
  | "deployments"
  /** Replicas of one deployment. */
  | "replicas"
  /** Cores and bytes of one container: a step's or a replica's. */
  | "cpus"
  | "memoryBytes";

/** `rule` names the line of the policy that decided, e.g. `policy.stores[0].read` or `policy.commands (default)`. */
export interface Verdict {
  allowed: boolean;
  rule: string;
  /** A sentence, present on refusal: what was asked, what the rule says. */
  reason: string;
  /** What the customer could change to allow it; present on refusal. */
  fix: string;
}

/** The policy as features see it. */
export interface PolicyGuard {
  /** Pure: same policy, same action, same verdict. */
  decide(action: PolicyAction): Verdict;
  /** Throws POLICY_DENIED with rule, reason and fix when the verdict is no. */
  require(action: PolicyAction): void;
  /** Hex sha-256 of the effective policy. */
  readonly digest: string;
  /** Rows that a preview may hold; 0 when previews may not leave. */
  readonly previewRows: number;
  limit(ceiling: Ceiling): number;
}
