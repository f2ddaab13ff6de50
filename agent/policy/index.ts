// The policy: what this agent may ever do, said by the customer's own file. It decides and does nothing; the runner and
// the features ask it. The cloud can neither read nor change it. Anyone in the agent may import this door.
export type { Ceiling, PolicyAction, PolicyGuard, Verdict } from "./action.ts";
export { compilePolicy, decide, LivePolicy, type CompiledPolicy, type Policy } from "./policy.ts";
export { defaultPolicy, policySchema, type PolicyConfig, type RawPolicy } from "./policy-config.ts";
