// Makes docs/errors.md from the closed list of codes in protocol/errors.ts and what a reader can do about each.
//   node test/contract/errors-page.ts      writes the page anew
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { ERROR_CODES, type ErrorCode } from "@sallyport/protocol";

const NOTHING = "Nothing: it is tried again by itself.";

/** A code without a row here does not pass the types. The error's own `fix` knows the case and goes before this. */
const WHAT_TO_DO: Record<ErrorCode, string> = {
  LINK_LOST:
    "Repeat the request; a durable command goes on by itself. When it comes often, look at the way between agent and control plane.",
  GOING_AWAY: NOTHING,
  PROTOCOL_VERSION: "Update the older of the two programs.",
  PROTOCOL_ERROR: "When it comes again, look for something between the two that changes bytes, and compare versions.",
  FRAME_TOO_LARGE: "Ask for less at once. When that is not the cause, compare versions.",
  HANDSHAKE_FAILED: "Nothing at first. When it lasts, look at the load and at proxies between agent and control plane.",
  CLOUD_UNREACHABLE:
    "Check the control plane's address in the agent's configuration, and that the host may open connections to it.",
  CLOUD_UNTRUSTED:
    "Check the address and what stands in between. If the control plane has new keys, enrol the agent anew.",
  PROXY_UNREACHABLE: "Check link.proxy of the agent's configuration, or HTTPS_PROXY, and the way to the proxy.",
  PROXY_UNTRUSTED: "Set link.proxy.ca to the CA that signed the proxy's certificate.",
  PROXY_AUTH_REQUIRED: "Set link.proxy.user and link.proxy.password to what the proxy accepts.",
  PROXY_REFUSED:
    "Let the proxy allow CONNECT to the control plane's host and port; `sallyport-agent doctor` says more.",
  IDENTITY_UNKNOWN: "Empty the agent's state directory and enrol it with a new secret.",
  IDENTITY_REVOKED: "If that was a mistake, empty the agent's state directory and enrol it with a new secret.",
  IDENTITY_CLONED:
    "Stop one of the two. If a state directory was copied, revoke this agent and enrol each machine by itself.",
  SESSION_SUPERSEDED: NOTHING,
  STREAM_REFUSED: "Wait until some of what is under way has ended.",
  ENROLMENT_UNKNOWN: "Copy the secret again, from the control plane that the agent dials.",
  ENROLMENT_USED: "Make a new secret; each is for one agent.",
  ENROLMENT_EXPIRED: "Make a new secret and use it within the hour.",
  ENROLMENT_REVOKED: "Make a new secret.",
  ENROLMENT_MALFORMED: "Copy the whole line again from the page Add agent, or make a new one there.",
  KIND_UNKNOWN: "Update the agent.",
  INPUT_INVALID: "Mend the fields that `errors` or `details` name.",
  SIGNATURE_INVALID:
    "Look for a change of the control plane's command keys; the agent learns them at its next connection.",
  DISPATCH_INVALID: "Nothing: it is offered anew. When it comes often, look for two control planes with one identity.",
  COMMAND_EXPIRED: "Ask for it again.",
  DECLARED_LOST: "See in its history what the agent said afterwards; ask for it again if it is to be done.",
  POLICY_DENIED: "Ask the customer to allow it in the agent's policy: `details` names the rule.",
  TIMED_OUT: "Ask again, for less or with more time.",
  CANCELLED: "Nothing: somebody wanted it so.",
  AGENT_OFFLINE: "Start the agent, or look at its log for why it is not connected.",
  AGENT_PAUSED: "The customer runs `sallyport-agent resume`.",
  AGENT_DRAINING: "Wait for the agent's next start.",
  HELD_ELSEWHERE: "Nothing: look at the replica that the command's history names.",
  AT_CAPACITY: "Wait until something has ended, or raise the ceiling in the agent's policy.",
  AUDIT_UNAVAILABLE: "Mend the disk that holds the agent's state directory; the agent goes on by itself.",
  JOURNAL_UNAVAILABLE: "Mend the disk that holds the agent's state directory, or put the journal back from a copy.",
  STORE_UNKNOWN: "Take a name that the message lists, or add the store to the agent's configuration.",
  PATH_INVALID: "Use a relative path without `.`, `..`, empty segments and NUL.",
  ARTIFACT_NOT_FOUND: "List the folder to see what there is.",
  NOT_A_FILE: "Name a file, or list the tree.",
  ARTIFACT_EXISTS: "Choose another path, or replace what is there by naming its version (If-Match).",
  PRECONDITION_FAILED: "Read the present version and repeat the change on it.",
  RANGE_INVALID: "Ask for a range within the object's size.",
  DIGEST_MISMATCH: "Send or read it again; when it stays, somebody changed the bytes.",
  TOO_LARGE: "Send less, or raise the limit that `details` names.",
  STORE_DENIED: "Mend the credentials of the store, or their rights, at the customer's side.",
  STORE_TLS: "Give the agent the CA of the store's certificate.",
  STORE_UNREACHABLE: "Check the store's address in the agent's configuration and the way there.",
  STORE_FAILED: "Look at the store's own log; it is safe to try again.",
  PREVIEW_UNSUPPORTED: "Download the artifact.",
  SECRET_UNKNOWN: "Mend the reference, or put the secret into its provider.",
  SECRET_DENIED: "Mend the agent's rights at the secret provider.",
  SECRET_UNREACHABLE: "Check the provider's address in the agent's configuration and the way there.",
  PIPELINE_INVALID: "Mend the pipeline where the message says, and start it again.",
  PROGRAM_UNKNOWN: "Add the program to the agent's configuration, or name one that is there.",
  STEP_FAILED: "Read the step's log.",
  STEP_TIMED_OUT: "Raise the step's `timeoutMs`, or look in its log for what it waited for.",
  STEP_OUTPUT_MISSING: "Let the program write each output to the path that it is given.",
  RUN_UNKNOWN: "Check the id, and that the agent is the one that ran it.",
  LOGS_GONE: "Nothing: the log is no longer kept. Start the run again if it is needed.",
  ENGINE_UNKNOWN: "Name one that the agent has (the answer lists them), or configure that one under engines.",
  ENGINE_FAILED: "Look at the agent's log and the engine's own; it is safe to try again.",
  ENGINE_UNREACHABLE: "Start the engine at the agent's machine. What runs in it is found again by itself.",
  IMAGE_INVALID: "Name the image by its digest: name@sha256:…, or sha256:… for one that is at the engine.",
  IMAGE_MISSING: "Build, load or push the image where the agent's engine finds it; it is tried again by itself.",
  IMAGE_DENIED: "Give the engine at the agent's machine the right to pull it, or load it there.",
  OUT_OF_MEMORY: "Give it more memory (resources.memoryBytes), or less to do.",
  DEPLOYMENT_UNKNOWN: "Apply the deployment again; the list shows what there is.",
  DEPLOYMENT_INVALID: "Mend what the message names and apply again.",
  DEPLOYMENT_UNREADY: "Look at the deployment's conditions: they say why no replica is ready.",
  GENERATION_STALE: "Read the deployment again and repeat the change on what it is now.",
  RUNTIME_MISSING: "Whoever runs the agent sets serving.process or serving.image in its configuration.",
  MODEL_REFUSED: "Look at the replica's log: the runtime says what it does not take. The old revision keeps serving.",
  CRASH_LOOP: "Look at the last lines of the replica's log, which the condition names.",
  REPLICA_UNREADY: "Nothing at first. When it lasts, look at the replica's log.",
  PORT_TAKEN: "Stop the program that listens there, or give serving.listen another port.",
  UNAUTHENTICATED: "Sign in again, or use a valid API token.",
  FORBIDDEN: "Ask somebody who may.",
  NOT_FOUND: "Check the id; the list shows what there is.",
  CONFLICT: "Read the resource again and repeat the change on what it is now.",
  IDEMPOTENCY_MISMATCH: "Use a new Idempotency-Key for a new request.",
  RATE_LIMITED: "Wait as long as Retry-After says.",
  SECRET_IN_URL: "Send it in a header or in the body; revoke it, for it was seen.",
  ORIGIN_DENIED: "Open the page at the control plane's own address.",
  MEDIA_TYPE_UNSUPPORTED: "Send the content type that /openapi.json names.",
  CONFIG_INVALID: "Mend the configuration where the message says.",
  STORAGE_FULL: "Free space on that disk; work goes on by itself.",
  STORAGE_CORRUPT: "Put a backup in its place.",
  DATABASE_UNAVAILABLE:
    "Look at the database when it lasts; work goes on by itself when it is back. Send again what was not answered, with its Idempotency-Key.",
  INTERNAL: "Look up the request id in the program's log.",
};

/** The groups, as the comments of the list name them. */
function groups(): { title: string; codes: ErrorCode[] }[] {
  const source = readFileSync(new URL("../../protocol/errors.ts", import.meta.url), "utf8");
  const list = source.slice(source.indexOf("ERROR_CODES = {"), source.indexOf("} as const"));
  const found: { title: string; codes: ErrorCode[] }[] = [];
  for (const line of list.split("\n")) {
    const title = /^ {2}\/\/ (.+)$/.exec(line)?.[1];
    const code = /^ {2}([A-Z_]+): \{/.exec(line)?.[1] as ErrorCode | undefined;
    if (title !== undefined) found.push({ title: title[0]!.toUpperCase() + title.slice(1), codes: [] });
    if (code !== undefined) found.at(-1)?.codes.push(code);
  }
  return found;
}

export function errorsPage(): string {
  const cell = (text: string): string => text.replaceAll("|", "\\|");
  const row = (code: ErrorCode): string => {
    const { status, retry, meaning } = ERROR_CODES[code];
    return `| \`${code}\` | ${status} | ${retry} | ${cell(meaning)} | ${cell(WHAT_TO_DO[code])} |`;
  };
  const tables = groups().map(
    ({ title, codes }) =>
      `## ${title}\n\n| code | HTTP | try again | meaning | what to do |\n| --- | --- | --- | --- | --- |\n${codes.map(row).join("\n")}\n`,
  );
  return `# Errors

Every failure that reaches a person or a program has one of these codes: in \`code\` of a problem (\`application/problem+json\`), of
a command's or a step's \`error\`, and in what the programs print. Codes are stable and never reused for another meaning; texts
may change, so match on codes alone. *Try again*: \`later\` means that the same request may succeed by itself, \`never\` that
something must change first. The error's own \`fix\` knows the case and goes before the last column.

This page is made from the list in \`protocol/errors.ts\`: \`node test/contract/errors-page.ts\`.

${tables.join("\n")}`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href)
  writeFileSync(new URL("../../docs/errors.md", import.meta.url), errorsPage());
