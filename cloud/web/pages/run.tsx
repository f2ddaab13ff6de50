// One run: what it is and why, its steps over time, and for the chosen step its log, what it made, and how it ended.
import { ActionIcon, Button, Menu, Select, Skeleton } from "@mantine/core";
import {
  IconAlertTriangle,
  IconCircleX,
  IconDots,
  IconDownload,
  IconFileDescription,
  IconHelpCircle,
  IconPackage,
  IconPlayerPlay,
  IconPlayerStop,
  IconRocket,
  IconStack2,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { api, artifactUrls } from "../api/client.ts";
import { previewQuery, runQuery } from "../api/queries.ts";
import type { Attempt, ParamValue, PipelineStep, ProducedArtifact, RunDetail } from "../api/types.ts";
import { Awaited } from "../parts/awaited.tsx";
import { Confirm } from "../parts/confirm.tsx";
import { Copy, Id } from "../parts/copy.tsx";
import { formatBytes, formatDuration, formatTime, plural } from "../parts/format.ts";
import { Empty, ErrorNote, Note, WaitingNote, Words } from "../parts/notes.tsx";
import { Fact, PageHead, Tabs } from "../parts/page.tsx";
import { RunStatus, STEP_LOOKS, Status, UNKNOWN_LOOK, lookOf } from "../parts/status.tsx";
import { Ago, Took, useNow } from "../parts/time.tsx";
import { predecessorsOf } from "../runs/timeline-layout.ts";
import { Timeline } from "../runs/timeline.tsx";
import { LogView } from "../runs/log-view.tsx";
import { stepLog } from "../runs/log-source.ts";
import { toast } from "../shell/toasts.tsx";
import { JsonView } from "../viewers/json-view.tsx";
import { MetricsView } from "../viewers/metrics-view.tsx";
import { metricsOf } from "../viewers/metrics.ts";

/** Which step a reader most likely wants: the failed one, else the one that runs, else the last that ended. */
export function stepToShow(run: Pick<RunDetail, "attempts" | "spec">): string | null {
  const newest = new Map<string, Attempt>();
  for (const attempt of run.attempts) newest.set(attempt.step, attempt);
  const all = [...newest.values()];
  const chosen =
    all.find((each) => each.state === "failed") ??
    all.findLast((each) => each.state === "running") ??
    all.toSorted((a, b) => (a.endedAt ?? 0) - (b.endedAt ?? 0)).at(-1);
  return chosen?.step ?? run.spec.steps[0]?.name ?? null;
}

export function RunDetailPage() {
  const { id } = useParams({ from: "/frame/runs/$id" });
  const search = useSearch({ from: "/frame/runs/$id" });
  const navigate = useNavigate({ from: "/runs/$id" });
  const client = useQueryClient();
  const query = useQuery(runQuery(id));
  const [ask, setAsk] = useState(false);
  const run = query.data;
  const crumbs = (
    <Link to="/runs" className="crumb">
      Runs
    </Link>
  );
  if (!run) return <Awaited thing="Run" crumbs={crumbs} query={query} />;
  const selected = run.spec.steps.some((step) => step.name === search.step) ? search.step! : stepToShow(run);
  const step = run.spec.steps.find((each) => each.name === selected);
  const over = run.endedAt !== null;
  const params = Object.entries(run.params);
  return (
    <>
      <PageHead
        title={run.pipeline}
        crumbs={crumbs}
        after={<RunStatus run={run} pill />}
        actions={
          <>
            {!over && (
              <Button variant="default" leftSection={<IconPlayerStop size={14} />} onClick={() => setAsk(true)}>
                Cancel
              </Button>
            )}
            <Button
              variant={over ? "filled" : "default"}
              leftSection={<IconPlayerPlay size={14} />}
              renderRoot={(props) => <Link to="/runs/new" search={{ from: run.id }} {...props} />}
            >
              Run again
            </Button>
            <Menu>
              <Menu.Target>
                <ActionIcon variant="default" aria-label="More for this run">
                  <IconDots size={16} />
                </ActionIcon>
              </Menu.Target>
              <Menu.Dropdown>
                <Menu.Item onClick={() => void navigate({ to: "/commands", search: { id: run.command } })}>
                  Show its command
                </Menu.Item>
                <Menu.Item
                  component="a"
                  href={`data:application/json,${encodeURIComponent(JSON.stringify(run, null, 2))}`}
                  download={`${run.id}.json`}
                >
                  Save as JSON
                </Menu.Item>
              </Menu.Dropdown>
            </Menu>
          </>
        }
      />
      <div className="body flush">
        <div className="run-facts">
          <Fact label="Run">
            <Id value={run.id} />
          </Fact>
          <Fact label={run.startedAt === null ? "Asked" : "Started"}>
            <Ago at={run.startedAt ?? run.createdAt} />
          </Fact>
          <Fact label="Duration">
            {run.state === "unknown" ? (
              <span className="faint">unknown</span>
            ) : (
              <Took from={run.startedAt} to={run.endedAt} />
            )}
          </Fact>
          <Fact label="Agent">
            {run.agent ? (
              <Link to="/agents/$id" params={{ id: run.agent.id }} className="link">
                {run.agent.name}
              </Link>
            ) : (
              <span className="dim">{run.pool.name}, none yet</span>
            )}
            {run.takenFrom && (
              <span
                className="faint"
                title="That one fell silent; both ask the same engine, so nothing was begun again"
              >
                {" "}
                taken over from {run.takenFrom.name}
              </span>
            )}
          </Fact>
          <Fact label="By">
            {run.actor.name} <span className="faint">by {run.actor.via}</span>
          </Fact>
          <Fact label="Steps">
            <span className="num">
              {run.stepsDone} of {run.stepsTotal}
            </span>
          </Fact>
          {run.rerunOf && (
            <Fact label="Repeats">
              <Link to="/runs/$id" params={{ id: run.rerunOf }} className="link mono" title={run.rerunOf}>
                {run.rerunOf.slice(0, 16)}…
              </Link>
            </Fact>
          )}
          {run.priority !== 0 && (
            <Fact label="Priority">
              <span className="num">{run.priority}</span>
            </Fact>
          )}
          {params.length > 0 && (
            <Fact label="Parameters" grow>
              <span className="clip" title={params.map(([name, value]) => `${name}=${String(value)}`).join("\n")}>
                {params.map(([name, value], n) => (
                  <span key={name}>
                    {n > 0 && ", "}
                    <span className="dim">{name}=</span>
                    {String(value)}
                  </span>
                ))}
              </span>
            </Fact>
          )}
        </div>
        {(run.waiting || run.error || run.state === "unknown") && (
          <div
            className="stack"
            style={{ padding: "12px var(--pad)", borderBottom: "1px solid var(--line)", gap: 8, flex: "none" }}
          >
            {run.waiting && <WaitingNote waiting={run.waiting} />}
            {run.state === "unknown" && (
              <Note
                tone="warn"
                icon={IconHelpCircle}
                title={`${run.agent?.name ?? "The agent"} is silent, so what became of this run is not known.`}
              >
                Its work does not depend on the link and probably goes on. This page shows the truth again when the
                agent is back; nothing is lost until then. If the agent will never be back, an operator can say so on{" "}
                <Link to="/commands" search={{ id: run.command }} className="link">
                  the command of this run
                </Link>
                .
              </Note>
            )}
            {run.error && (
              <RunErrorNote
                run={run}
                onStep={(name) => void navigate({ search: { step: name }, replace: true })}
                selected={selected}
              />
            )}
          </div>
        )}
        <Timeline
          run={run}
          selected={selected}
          onSelect={(name, attempt) =>
            void navigate({
              search: (old) => ({ step: name, ...(attempt ? { attempt } : {}), ...(old.tab ? { tab: old.tab } : {}) }),
              replace: true,
            })
          }
        />
        {step && (
          <StepPanel
            key={step.name}
            run={run}
            step={step}
            attempt={search.attempt}
            tab={search.tab}
            line={search.line}
            set={(change) =>
              void navigate({ search: (old) => ({ ...old, step: step.name, ...change }) as never, replace: true })
            }
          />
        )}
      </div>
      <Confirm
        opened={ask}
        onClose={() => setAsk(false)}
        title="Cancel this run?"
        verb="Cancel the run"
        act={async () => {
          await api.post(`/v1/runs/${run.id}/cancel`);
          await client.invalidateQueries({ queryKey: ["runs"] });
          toast("The run is being cancelled.");
        }}
      >
        Steps that run are stopped on the agent, and the others do not begin. What was already written to stores stays
        there.
      </Confirm>
    </>
  );
}

/** The run's error; when it only says that a step failed, the step's own panel has the details. */
function RunErrorNote({
  run,
  onStep,
  selected,
}: {
  run: RunDetail;
  onStep: (step: string) => void;
  selected: string | null;
}) {
  const failed = run.attempts.findLast((attempt) => attempt.state === "failed");
  const error = run.error!;
  return (
    <div className="note bad">
      <IconCircleX size={18} stroke={1.8} aria-hidden />
      <div className="note-body">
        <b>
          <Words text={error.message} />
        </b>
        {error.fix && (
          <div className="fix">
            <Words text={error.fix} />
          </div>
        )}
        <div className="meta">
          <span className="mono">{error.code}</span>
          <Copy
            text={[error.message, error.fix, `code: ${error.code}`, `run: ${run.id}`].filter(Boolean).join("\n")}
            label="Copy the error"
          />
          {failed && failed.step !== selected && (
            <Button variant="default" size="compact-xs" onClick={() => onStep(failed.step)}>
              Show step {failed.step}
            </Button>
          )}
        </div>
      </div>
    </div>
  );
}

interface PanelProps {
  run: RunDetail;
  step: PipelineStep;
  attempt: number | undefined;
  tab: string | undefined;
  line: number | undefined;
  set: (change: { attempt?: number | undefined; tab?: string | undefined; line?: number | undefined }) => void;
}

function StepPanel({ run, step, attempt: wanted, tab: wantedTab, line, set }: PanelProps) {
  const attempts = run.attempts.filter((each) => each.step === step.name).sort((a, b) => a.attempt - b.attempt);
  const attempt = attempts.find((each) => each.attempt === wanted) ?? attempts.at(-1);
  const tab = wantedTab ?? "log";
  const state = attempt?.state ?? "pending";
  return (
    <section
      style={{ display: "flex", flexDirection: "column", flex: 1, minHeight: 0 }}
      aria-label={`Step ${step.name}`}
    >
      <Tabs
        label={`Step ${step.name}`}
        value={tab}
        onChange={(next) => set({ tab: next === "log" ? undefined : next, line: undefined })}
        tabs={[
          { value: "log", word: "Log" },
          {
            value: "outputs",
            word: (
              <>
                Outputs{" "}
                {attempt && attempt.outputs.length > 0 && <span className="tag num">{attempt.outputs.length}</span>}
              </>
            ),
          },
          {
            value: "details",
            word: (
              <>
                Details{" "}
                {attempt?.error && <IconAlertTriangle size={14} className="tone-bad" aria-label="has an error" />}
              </>
            ),
          },
          { value: "spec", word: "Spec" },
        ]}
        end={
          <>
            <span className="clip" style={{ fontWeight: 600 }}>
              {step.name}
            </span>
            <Status look={run.state === "unknown" && state === "running" ? UNKNOWN_LOOK : lookOf(STEP_LOOKS, state)} />
            {attempt && attempt.retryAt !== null && <NextTry at={attempt.retryAt} />}
            {attempts.length > 1 && (
              <Select
                aria-label="Attempt"
                w={122}
                allowDeselect={false}
                value={String(attempt?.attempt)}
                onChange={(value) =>
                  set({ attempt: value === String(attempts.length) ? undefined : Number(value), line: undefined })
                }
                data={attempts.map((each) => ({ value: String(each.attempt), label: `Attempt ${each.attempt}` }))}
              />
            )}
          </>
        }
      />
      {tab === "spec" ? (
        <Spec step={step} run={run} />
      ) : !attempt || attempt.state === "skipped" ? (
        <NotBegun run={run} step={step} />
      ) : tab === "outputs" ? (
        <Outputs run={run} step={step} attempt={attempt} />
      ) : tab === "details" ? (
        <Details attempt={attempt} run={run} />
      ) : (
        <LogView
          key={`${step.name} ${attempt.attempt}`}
          log={stepLog(run.id, step.name, attempt.attempt)}
          live={attempt.state === "running"}
          silent={run.state === "unknown"}
          line={line}
          onLine={(next) => set({ line: next })}
        />
      )}
    </section>
  );
}

/** A step that failed and is tried again: the agent waits before that, longer each time. */
function NextTry({ at }: { at: number }) {
  const s = Math.ceil((at - useNow()) / 1000);
  return <span className="tone-warn nowrap">{s > 0 ? `tried again in ${s} s` : "tried again now"}</span>;
}

function NotBegun({ run, step }: { run: RunDetail; step: PipelineStep }) {
  const before = predecessorsOf(step);
  const over = run.endedAt !== null;
  return (
    <Empty icon={IconStack2} title={over ? "This step never began" : "This step has not begun"}>
      {over
        ? run.state === "failed" && before.length > 0
          ? `The run failed before its turn came; it needed ${before.join(" and ")}.`
          : "The run ended before its turn came."
        : run.waiting
          ? "The whole run waits; the note above says for what."
          : before.length > 0
            ? `It begins when ${before.join(" and ")} ${before.length === 1 ? "has" : "have"} succeeded.`
            : "It begins as soon as the agent has a slot for it."}
    </Empty>
  );
}

function Outputs({ run, step, attempt }: { run: RunDetail; step: PipelineStep; attempt: Attempt }) {
  const declared = Object.keys(step.outputs);
  if (attempt.outputs.length === 0) {
    return (
      <Empty
        icon={IconPackage}
        title={
          declared.length === 0
            ? "This step declares no outputs"
            : attempt.state === "running" || attempt.state === "pending"
              ? "Nothing is stored yet"
              : "Nothing was stored"
        }
      >
        {declared.length > 0 &&
          `Declared: ${declared.join(", ")}. Outputs are stored, with their digest, when the step has succeeded.`}
      </Empty>
    );
  }
  return (
    <div style={{ overflow: "auto", flex: 1, padding: "16px var(--pad)" }}>
      <div className="outputs">
        {attempt.outputs.map((output) => (
          <Output key={output.name} pool={run.pool.name} output={output} />
        ))}
      </div>
    </div>
  );
}

/** Pictures and figures this small are shown at once. */
const INLINE_BYTES = 2_000_000;

const isModel = (output: ProducedArtifact) =>
  output.kind === "file" && (output.path.toLowerCase().endsWith(".onnx") || output.mediaType.includes("onnx"));

function Output({ pool, output }: { pool: string; output: ProducedArtifact }) {
  const inline =
    output.kind === "file" &&
    output.sizeBytes <= INLINE_BYTES &&
    (output.mediaType.startsWith("image/") || output.mediaType.includes("json"));
  const preview = useQuery({ ...previewQuery(pool, output.store, output.path), enabled: inline });
  const folder = output.path.includes("/") ? output.path.slice(0, output.path.lastIndexOf("/")) : "";
  const shown = preview.data?.preview;
  const metrics = shown?.type === "json" ? metricsOf(shown.value) : null;
  return (
    <section className="card">
      <div className="card-head">
        <IconFileDescription size={16} stroke={1.6} className="faint" aria-hidden />
        <h2 className="clip">
          <Link
            to="/artifacts/$pool/$store"
            params={{ pool, store: output.store }}
            search={
              output.kind === "tree"
                ? { path: output.path }
                : { ...(folder ? { path: folder } : {}), file: output.path }
            }
            className="link"
          >
            {output.name}
          </Link>
        </h2>
        <span className="faint small nowrap">
          {formatBytes(output.sizeBytes)} · {output.kind === "tree" ? "folder" : output.mediaType}
        </span>
        {output.kind === "file" && (
          <span className="row" style={{ marginLeft: "auto", gap: 4 }}>
            {isModel(output) && (
              <Button
                variant="default"
                size="compact-xs"
                leftSection={<IconRocket size={13} />}
                renderRoot={(props) => (
                  <Link
                    to="/deployments/new"
                    search={{ pool, store: output.store, path: output.path, digest: output.digest }}
                    {...props}
                  />
                )}
              >
                Deploy
              </Button>
            )}
            <ActionIcon
              component="a"
              href={artifactUrls.content(pool, output.store, output.path)}
              download
              aria-label={`Download ${output.name}`}
            >
              <IconDownload size={15} stroke={1.8} />
            </ActionIcon>
          </span>
        )}
      </div>
      <div className="card-body" style={{ padding: "10px 14px" }}>
        <dl className="facts" style={{ gridTemplateColumns: "56px minmax(0, 1fr)" }}>
          <dt>Store</dt>
          <dd>
            <Id value={`${output.store}/${output.path}`} />
          </dd>
          <dt>Digest</dt>
          <dd>
            <Id value={output.digest} />
          </dd>
        </dl>
      </div>
      {inline && shown?.type === "image" && (
        <div className="out-img">
          <img src={`data:${shown.mediaType};base64,${shown.data}`} alt={output.name} />
        </div>
      )}
      {inline && shown?.type === "json" && (
        <div style={{ borderTop: "1px solid var(--line)", maxHeight: 360, display: "flex", flexDirection: "column" }}>
          {metrics ? <MetricsView groups={metrics} /> : <JsonView value={shown.value} />}
        </div>
      )}
      {inline && preview.isPending && <Skeleton height={120} radius={0} />}
    </section>
  );
}

function Details({ attempt, run }: { attempt: Attempt; run: RunDetail }) {
  return (
    <div style={{ overflow: "auto", flex: 1, padding: "16px var(--pad)" }}>
      <div className="stack" style={{ maxWidth: 820 }}>
        {attempt.error && attempt.error.message !== run.error?.message && <ErrorNote error={attempt.error} />}
        <dl className="facts">
          <dt>State</dt>
          <dd>
            <Status look={lookOf(STEP_LOOKS, attempt.state)} />
          </dd>
          <dt>Attempt</dt>
          <dd className="num">
            {attempt.attempt}
            {attempt.adopted && (
              <span
                className="tag accent"
                style={{ marginLeft: 8 }}
                title="An agent found this attempt begun, by itself before a restart or by another of its pool, and went on with it; it was not started again"
              >
                {run.takenFrom ? "gone on with" : "taken over after a restart"}
              </span>
            )}
          </dd>
          <dt>Exit code</dt>
          <dd className="num">
            {attempt.exitCode ?? <span className="faint">{attempt.endedAt === null ? "still running" : "none"}</span>}
          </dd>
          <dt>Began</dt>
          <dd className="num">{attempt.startedAt === null ? "–" : formatTime(attempt.startedAt)}</dd>
          <dt>Ended</dt>
          <dd className="num">{attempt.endedAt === null ? "–" : formatTime(attempt.endedAt)}</dd>
          <dt>Duration</dt>
          <dd>
            {run.state === "unknown" && attempt.endedAt === null ? (
              "unknown"
            ) : (
              <Took from={attempt.startedAt} to={attempt.endedAt} />
            )}
          </dd>
          <dt>Log</dt>
          <dd className="num">{plural(attempt.logSeq, "record")}</dd>
        </dl>
      </div>
    </div>
  );
}

function Spec({ step, run }: { step: PipelineStep; run: RunDetail }) {
  const inputs = Object.entries(step.inputs);
  const outputs = Object.entries(step.outputs);
  const secrets = Object.entries(step.secrets);
  const env = Object.entries(step.env);
  const text = JSON.stringify(step, null, 2);
  return (
    <div style={{ overflow: "auto", flex: 1, padding: "16px var(--pad)" }}>
      <div className="two-cols" style={{ maxWidth: 1180 }}>
        <dl className="facts" style={{ alignContent: "start" }}>
          <dt>{step.image === undefined ? "Program" : "Image"}</dt>
          <dd className="mono">{step.image ?? step.program}</dd>
          <dt>Arguments</dt>
          <dd>
            {step.args.length === 0 ? (
              <span className="faint">none</span>
            ) : (
              <span className="mono">{step.args.join(" ")}</span>
            )}
          </dd>
          <dt>After</dt>
          <dd>{predecessorsOf(step).join(", ") || <span className="faint">nothing: it may begin at once</span>}</dd>
          <dt>Inputs</dt>
          <dd>
            {inputs.length === 0 ? (
              <span className="faint">none</span>
            ) : (
              inputs.map(([name, ref]) => (
                <div key={name}>
                  {name} <span className="faint">from</span>{" "}
                  {"step" in ref ? (
                    <span className="mono">
                      {ref.step}.{ref.output}
                    </span>
                  ) : (
                    <Link
                      to="/artifacts/$pool/$store"
                      params={{ pool: run.pool.name, store: ref.store }}
                      search={{
                        file: ref.path,
                        ...(ref.path.includes("/") ? { path: ref.path.slice(0, ref.path.lastIndexOf("/")) } : {}),
                      }}
                      className="link mono"
                    >
                      {ref.store}/{ref.path}
                    </Link>
                  )}
                </div>
              ))
            )}
          </dd>
          <dt>Outputs</dt>
          <dd>
            {outputs.length === 0 ? (
              <span className="faint">none</span>
            ) : (
              outputs.map(([name, output]) => (
                <div key={name}>
                  {name}
                  {output.mediaType && <span className="faint"> {output.mediaType}</span>}
                </div>
              ))
            )}
          </dd>
          {secrets.length > 0 && (
            <>
              <dt>Secrets</dt>
              <dd>
                {secrets.map(([name, secret]) => (
                  <div key={name}>
                    <span className="mono">{name}</span> <span className="faint">by the name</span>{" "}
                    <span className="mono">{secret}</span>
                  </div>
                ))}
              </dd>
            </>
          )}
          {env.length > 0 && (
            <>
              <dt>Environment</dt>
              <dd>
                {env.map(([name, value]) => (
                  <div key={name} className="mono">
                    {name}={value}
                  </div>
                ))}
              </dd>
            </>
          )}
          <dt>Time limit</dt>
          <dd>{formatDuration(step.timeoutMs)}</dd>
          <dt>Retries</dt>
          <dd className="num">{step.retries}</dd>
          {Object.keys(run.params).length > 0 && (
            <>
              <dt>Parameters</dt>
              <dd>
                {Object.entries(run.params as Record<string, ParamValue>).map(([name, value]) => (
                  <div key={name} className="mono">
                    {name}={String(value)}
                  </div>
                ))}
              </dd>
            </>
          )}
        </dl>
        <div className="copyline" style={{ alignSelf: "start" }}>
          <pre>{text}</pre>
          <Copy text={text} label="Copy the step" size={26} />
        </div>
      </div>
    </div>
  );
}
