// One request to the endpoint, by hand: made ready from what the model says of itself, sent through the link, shown as
// it came. Nothing of it is kept, here or on the way.
import { Button, Textarea } from "@mantine/core";
import { IconEyeOff, IconPlugConnectedX, IconRefresh, IconSend } from "@tabler/icons-react";
import { queryOptions, useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { errorOf, newKey, noAnswer, query } from "../api/client.ts";
import type { DeploymentDetail } from "../api/types.ts";
import { Copy } from "../parts/copy.tsx";
import { formatBytes, formatLatency } from "../parts/format.ts";
import { Empty, Note, ProblemNote } from "../parts/notes.tsx";
import { JsonView } from "../viewers/json-view.tsx";
import { isMetadata, sampleRequest, tensorText, type ModelMetadata } from "./sample-request.ts";

/** Longest body that goes through the link; larger ones go to the endpoint itself. */
const MAX_BODY_BYTES = 128 * 1024;

interface Answer {
  status: number;
  tookMs: number | null;
  replica: string;
  text: string;
  /** Undefined = not JSON. */
  value: unknown;
}

/** The replica's own answer, also when it refuses; an ApiError when no replica was reached. */
async function request(
  id: string,
  method: "GET" | "POST",
  path: string,
  body: string | null,
  signal?: AbortSignal,
): Promise<Answer> {
  let response: Response;
  try {
    response = await fetch(`/v1/deployments/${encodeURIComponent(id)}/request${query({ path, method })}`, {
      method: "POST",
      credentials: "same-origin",
      headers: { accept: "application/json", "content-type": "application/json", "idempotency-key": newKey() },
      body: body ?? "",
      signal: signal ?? null,
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw noAnswer();
  }
  const replica = response.headers.get("sallyport-replica");
  if (replica === null) throw await errorOf(response);
  const text = await response.text();
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    value = undefined;
  }
  const took = Number(response.headers.get("sallyport-took-ms") ?? Number.NaN);
  return {
    status: Number(response.headers.get("sallyport-status") ?? response.status),
    tookMs: Number.isFinite(took) ? took : null,
    replica,
    text,
    value,
  };
}

const metadataQuery = (deployment: DeploymentDetail) =>
  queryOptions({
    // Each is a read at the customer, written into its audit log: once for a revision, never by focus of the window.
    queryKey: ["model-metadata", deployment.id, deployment.observed?.revision ?? deployment.revision],
    queryFn: async ({ signal }): Promise<ModelMetadata | null> => {
      const answer = await request(deployment.id, "GET", `/v2/models/${deployment.name}`, null, signal);
      return answer.status === 200 && isMetadata(answer.value) ? answer.value : null;
    },
    staleTime: Infinity,
    refetchOnWindowFocus: false,
    retry: false,
  });

export function TryIt({ deployment, silent }: { deployment: DeploymentDetail; silent: boolean }) {
  const path = `/v2/models/${deployment.name}/infer`;
  const metadata = useQuery({ ...metadataQuery(deployment), enabled: !silent && (deployment.replicasReady ?? 0) > 0 });
  const [text, setText] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [error, setError] = useState<unknown>(null);
  const stop = useRef<AbortController | null>(null);
  useEffect(() => () => stop.current?.abort(), []);

  const sample = metadata.data ? sampleRequest(metadata.data) : null;
  const body = text ?? sample ?? "";
  let problem: string | null = null;
  if (body.trim() !== "") {
    try {
      JSON.parse(body);
    } catch (caught) {
      problem = `This is not JSON: ${caught instanceof Error ? caught.message : String(caught)}`;
    }
  }
  const bytes = new TextEncoder().encode(body).length;
  if (bytes > MAX_BODY_BYTES)
    problem = `${formatBytes(bytes)} is more than the 128 KiB that go through the link; send it to the endpoint itself.`;

  const send = async () => {
    stop.current?.abort();
    const mine = new AbortController();
    stop.current = mine;
    setBusy(true);
    setError(null);
    try {
      setAnswer(await request(deployment.id, "POST", path, body, mine.signal));
    } catch (caught) {
      if (mine.signal.aborted) return;
      setAnswer(null);
      setError(caught);
    }
    setBusy(false);
  };

  if (silent)
    return (
      <Empty icon={IconPlugConnectedX} title="The agent is not there to ask">
        Requests from this page go through the agent's link, which is down. Clients in the agent's network do not need
        it: the endpoint answers them as long as replicas run.
      </Empty>
    );
  return (
    <div className="try">
      <section className="try-in" aria-label="Request">
        <div className="try-head">
          <span className="mono clip">
            <b>POST</b> {path}
          </span>
          {metadata.data && (
            <Button
              variant="default"
              size="compact-xs"
              leftSection={<IconRefresh size={13} />}
              disabled={text === null || sample === null}
              onClick={() => setText(null)}
            >
              Sample again
            </Button>
          )}
          <Button
            leftSection={<IconSend size={14} />}
            loading={busy}
            disabled={body.trim() === "" || problem !== null}
            onClick={() => void send()}
          >
            Send
          </Button>
        </div>
        {(deployment.replicasReady ?? 0) === 0 && (
          <Note tone="warn" title="No replica is ready, so nothing answers yet.">
            The request would wait a moment at the router and then be refused.
          </Note>
        )}
        {metadata.error && text === null && (
          <ProblemNote error={metadata.error} onRetry={() => void metadata.refetch()} />
        )}
        {metadata.data && (
          <div className="tensors">
            {metadata.data.inputs.map((each) => (
              <span key={`in ${each.name}`} className="tag mono" title="input">
                {each.name} {tensorText(each)}
              </span>
            ))}
            <span className="faint" aria-label="gives">
              →
            </span>
            {(metadata.data.outputs ?? []).map((each) => (
              <span key={`out ${each.name}`} className="tag accent mono" title="output">
                {each.name} {tensorText(each)}
              </span>
            ))}
          </div>
        )}
        <Textarea
          aria-label="Request body, JSON"
          className="try-text"
          spellCheck={false}
          value={body}
          placeholder={
            metadata.isFetching
              ? "Asking the model for its inputs…"
              : '{ "inputs": [ { "name": "…", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0] } ] }'
          }
          onChange={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
            event.preventDefault();
            if (body.trim() !== "" && problem === null && !busy) void send();
          }}
          error={problem}
        />
        {metadata.data && sample === null && (
          <span className="dim small">
            This model's input is too large to be typed: write a request, or use the endpoint.
          </span>
        )}
        <span className="faint small">
          Request and answer pass through memory only: the control plane keeps neither, and logs neither.
        </span>
      </section>
      <section className="try-out" aria-label="Answer" aria-live="polite">
        {error !== null ? (
          <div style={{ padding: 16 }}>
            <ProblemNote error={error} onRetry={() => void send()} />
          </div>
        ) : answer ? (
          <>
            <div className="try-head">
              <span className={`tag num ${answer.status < 400 ? "accent" : "bad"}`}>{answer.status}</span>
              <span className="dim small clip num">
                {answer.tookMs !== null && `${formatLatency(answer.tookMs)} at the agent, `}by replica {answer.replica}
              </span>
              <span style={{ marginLeft: "auto" }}>
                <Copy text={answer.text} label="Copy the answer" size={26} />
              </span>
            </div>
            {answer.value === undefined ? (
              <pre className="try-pre" tabIndex={0}>
                {answer.text === "" ? "(empty)" : answer.text}
              </pre>
            ) : (
              <JsonView key={answer.text} value={answer.value} openDepth={6} />
            )}
          </>
        ) : (
          <Empty icon={IconEyeOff} title="No answer yet">
            What the replica answers is shown here, and nowhere else. <span className="kbd nowrap">Ctrl Enter</span>{" "}
            sends.
          </Empty>
        )}
      </section>
    </div>
  );
}
