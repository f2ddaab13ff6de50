// One request to a deployment's endpoint, through the link. Neither it nor its answer is kept, logged or looked into.
import { ConnectorError, deploymentRequest, MAX_REQUEST_BYTES, type ReplicaId } from "@sallyport/protocol";
import type { Dispatch } from "../../dispatch/index.ts";
import type { DeploymentRow, Scope } from "../../store/store.ts";

export interface DeploymentQuestion {
  method: "GET" | "POST";
  /** Absent = to infer by POST, the model's metadata by GET. */
  path?: string | undefined;
  /** Bytes of JSON text; null for GET. */
  body: Buffer | null;
  timeoutMs: number;
}

export interface DeploymentAnswer {
  status: number;
  mediaType: string;
  replica: string;
  tookMs: number;
  content: AsyncIterable<Buffer>;
}

export async function sendRequest(
  dispatch: Dispatch,
  scope: Scope,
  row: DeploymentRow,
  owner: ReplicaId,
  question: DeploymentQuestion,
  signal: AbortSignal,
): Promise<DeploymentAnswer> {
  const { method, timeoutMs } = question;
  const body = method === "GET" ? null : (question.body ?? Buffer.alloc(0));
  if (body !== null && body.length > MAX_REQUEST_BYTES) throw tooLarge(row);
  const relayed = await dispatch.relay(
    scope,
    { id: row.pool, name: row.poolName },
    deploymentRequest,
    {
      deployment: row.id,
      method,
      path: question.path ?? `/v2/models/${row.name}${method === "POST" ? "/infer" : ""}`,
      timeoutMs,
      ...(body === null ? {} : { body: textOf(body) }),
    },
    { resource: `deployment:${row.id}`, replica: owner, signal, answerWithinMs: timeoutMs },
  );
  return { ...relayed.result, content: relayed.content! };
}

export const tooLarge = (row: DeploymentRow): ConnectorError =>
  new ConnectorError(
    "TOO_LARGE",
    `The request's body is larger than the ${MAX_REQUEST_BYTES} bytes that go through the link.`,
    {
      fix: `Send it to the endpoint itself${row.observed === null ? "" : ` (${row.observed.endpoint})`}, from within the agent's network.`,
      details: { limit: MAX_REQUEST_BYTES },
    },
  );

function textOf(body: Buffer): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);
  } catch (cause) {
    throw new ConnectorError("INPUT_INVALID", "The request's body is not UTF-8 text.", {
      fix: "Send JSON; tensors as numbers, not as binary data.",
      cause,
    });
  }
}
