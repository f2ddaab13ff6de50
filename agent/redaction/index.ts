// Redaction: hides the secrets that the agent knows in every byte that the agent composes (logs, errors, results).
// It is not for artifact bytes, which are the customer's and never rewritten. Anyone in the agent may import this door.
export { createRedactor, MARK } from "./secret-redactor.ts";
export type { RedactionStream, Redactor } from "./redactor.ts";
