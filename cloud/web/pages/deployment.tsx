// One deployment: what is wanted, what the agent has made of it and how old that knowledge is, and what can be done.
import { ActionIcon, Button, Menu, Modal, Select, TextInput } from "@mantine/core";
import {
  IconBan,
  IconDots,
  IconFileText,
  IconHelpCircle,
  IconPencil,
  IconRocket,
  IconStack2,
  IconTrash,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useState, type ReactNode } from "react";
import { api, problemCode } from "../api/client.ts";
import { deploymentQuery, rollupsQuery } from "../api/queries.ts";
import type { Condition, DeploymentDetail, Replica } from "../api/types.ts";
import { Revisions, SpecFacts } from "../deployments/revisions.tsx";
import { Scale } from "../deployments/scale.tsx";
import { Traffic } from "../deployments/traffic-charts.tsx";
import { TryIt } from "../deployments/try-it.tsx";
import { Awaited } from "../parts/awaited.tsx";
import { CopyLine, Id } from "../parts/copy.tsx";
import { formatAge, formatClock, formatTime } from "../parts/format.ts";
import { Empty, ErrorNote, Note, ProblemNote, WaitingNote, Words } from "../parts/notes.tsx";
import { Fact, PageHead, Tabs } from "../parts/page.tsx";
import {
  DeploymentStatus,
  REMOVED_LOOK,
  REPLICA_LOOKS,
  Status,
  StatusIcon,
  UNKNOWN_LOOK,
  lookOf,
  type Look,
} from "../parts/status.tsx";
import { Ago, useNow } from "../parts/time.tsx";
import { replicaLog } from "../runs/log-source.ts";
import { LogView } from "../runs/log-view.tsx";
import { toast } from "../shell/toasts.tsx";
import { Isolation } from "./new-deployment.tsx";
import { ReplicaCount } from "./deployments.tsx";

/** Where a log is to be opened: which replica, which of its starts, at which line. */
interface LogAt {
  replica: string;
  start?: number;
  line?: number;
}

export function DeploymentPage() {
  const { id } = useParams({ from: "/frame/deployments/$id" });
  const search = useSearch({ from: "/frame/deployments/$id" });
  const navigate = useNavigate({ from: "/deployments/$id" });
  const query = useQuery(deploymentQuery(id));
  const [remove, setRemove] = useState(false);
  const deployment = query.data;
  const crumbs = (
    <Link to="/deployments" className="crumb">
      Deployments
    </Link>
  );
  if (!deployment) return <Awaited thing="Deployment" crumbs={crumbs} query={query} />;
  if (deployment.removedAt !== null)
    return <Removed deployment={deployment} at={deployment.removedAt} crumbs={crumbs} />;
  const silent = deployment.state === "unknown";
  const gone = deployment.state === "removing";
  const tab = search.tab ?? "overview";
  const behind = deployment.appliedGeneration !== null && deployment.appliedGeneration < deployment.generation;
  const openLog = (at: LogAt) => void navigate({ search: { tab: "logs", ...at } });
  const replicas = deployment.observed?.replicas ?? [];
  return (
    <>
      <PageHead
        title={deployment.name}
        crumbs={crumbs}
        after={<DeploymentStatus deployment={deployment} pill />}
        actions={
          <>
            {!gone && (
              <Button
                variant="default"
                leftSection={<IconPencil size={14} />}
                renderRoot={(props) => <Link to="/deployments/$id/change" params={{ id: deployment.id }} {...props} />}
              >
                Change
              </Button>
            )}
            <Menu>
              <Menu.Target>
                <ActionIcon variant="default" aria-label="More for this deployment">
                  <IconDots size={16} />
                </ActionIcon>
              </Menu.Target>
              <Menu.Dropdown>
                <Menu.Item onClick={() => void navigate({ to: "/commands", search: { id: deployment.command } })}>
                  Show its newest command
                </Menu.Item>
                <Menu.Item
                  component="a"
                  href={`data:application/json,${encodeURIComponent(JSON.stringify({ pool: deployment.pool.name, name: deployment.name, spec: deployment.spec }, null, 2))}`}
                  download={`${deployment.name}.deployment.json`}
                >
                  Save as JSON, to apply again
                </Menu.Item>
                {!gone && (
                  <>
                    <Menu.Divider />
                    <Menu.Item color="red" leftSection={<IconTrash size={15} />} onClick={() => setRemove(true)}>
                      Remove
                    </Menu.Item>
                  </>
                )}
              </Menu.Dropdown>
            </Menu>
          </>
        }
      />
      <div className="body flush">
        <div className="run-facts">
          <Fact label="Replicas ready">
            <ReplicaCount deployment={deployment} />
          </Fact>
          <Fact label="Revision">
            <span className="num">{deployment.revision}</span>
          </Fact>
          <Fact label="Generation">
            <span className="num" title="Wanted is what was last asked for; applied is what the agent holds">
              {deployment.generation}{" "}
              {deployment.appliedGeneration === null ? (
                <span className="faint">wanted, none applied yet</span>
              ) : behind ? (
                <span className="tone-warn">wanted, {deployment.appliedGeneration} applied</span>
              ) : (
                <span className="faint">{silent ? "was applied" : "applied"}</span>
              )}
            </span>
          </Fact>
          <Fact label="Agent">
            {deployment.agent ? (
              <Link to="/agents/$id" params={{ id: deployment.agent.id }} className="link">
                {deployment.agent.name}
              </Link>
            ) : (
              <span className="dim">{deployment.pool.name}, none yet</span>
            )}
          </Fact>
          <Fact label="Engine">{deployment.spec.engine}</Fact>
          <Fact label="Heard">
            {deployment.observedAt === null ? (
              <span className="faint">not yet</span>
            ) : (
              <Ago at={deployment.observedAt} />
            )}
          </Fact>
          <Fact label="Changed">
            <Ago at={deployment.updatedAt} />
            <span className="faint">by {deployment.actor.name}</span>
          </Fact>
          <Fact label="Model" grow>
            <Link
              to="/artifacts/$pool/$store"
              params={{ pool: deployment.pool.name, store: deployment.spec.model.store }}
              search={{
                file: deployment.spec.model.path,
                ...(deployment.spec.model.path.includes("/")
                  ? { path: deployment.spec.model.path.slice(0, deployment.spec.model.path.lastIndexOf("/")) }
                  : {}),
              }}
              className="link mono clip"
              title={deployment.spec.model.digest}
            >
              {deployment.spec.model.store}/{deployment.spec.model.path}
            </Link>
          </Fact>
        </div>
        <Notes deployment={deployment} silent={silent} />
        <Tabs
          label="About this deployment"
          value={tab}
          onChange={(next) => void navigate({ search: next === "overview" ? {} : { tab: next }, replace: true })}
          tabs={[
            { value: "overview", word: "Overview" },
            { value: "logs", word: "Logs" },
            { value: "try", word: "Try it" },
            { value: "revisions", word: "Revisions" },
          ]}
        />
        {tab === "logs" ? (
          <Logs
            deployment={deployment}
            silent={silent}
            at={{
              ...(search.replica ? { replica: search.replica } : {}),
              ...(search.start ? { start: search.start } : {}),
              ...(search.line ? { line: search.line } : {}),
            }}
            set={(change) =>
              void navigate({ search: (old) => ({ ...old, tab: "logs", ...change }) as never, replace: true })
            }
          />
        ) : tab === "try" ? (
          <TryIt deployment={deployment} silent={silent} />
        ) : tab === "revisions" ? (
          <div className="body">
            <div className="stack" style={{ maxWidth: 920, gap: 16 }}>
              <Revisions deployment={deployment} />
            </div>
          </div>
        ) : (
          <div className="body">
            <div className="stack" style={{ maxWidth: 1240, gap: 16 }}>
              <div className="home-cols">
                <Conditions deployment={deployment} silent={silent} onLog={openLog} />
                <Scale deployment={deployment} />
              </div>
              <Replicas replicas={replicas} deployment={deployment} silent={silent} onLog={openLog} />
              <Hour deployment={deployment} silent={silent} />
              <div className="home-cols">
                <Endpoint deployment={deployment} silent={silent} />
                <section className="card" aria-label="Made from">
                  <div className="card-head">
                    <h2>Made from</h2>
                    <span className="faint small num">revision {deployment.revision}</span>
                  </div>
                  <div className="card-body">
                    <SpecFacts deployment={deployment} />
                  </div>
                </section>
              </div>
            </div>
          </div>
        )}
      </div>
      {remove && <Remove deployment={deployment} onClose={() => setRemove(false)} />}
    </>
  );
}

/** What is left of one of which nothing runs any more: what it was. */
function Removed({ deployment, at, crumbs }: { deployment: DeploymentDetail; at: number; crumbs: ReactNode }) {
  const { model } = deployment.spec;
  return (
    <>
      <PageHead
        title={deployment.name}
        crumbs={crumbs}
        after={<Status look={REMOVED_LOOK} pill />}
        actions={
          <Button
            variant="default"
            leftSection={<IconRocket size={14} />}
            renderRoot={(props) => (
              <Link
                to="/deployments/new"
                search={{ pool: deployment.pool.name, store: model.store, path: model.path, digest: model.digest }}
                {...props}
              />
            )}
          >
            Deploy its model again
          </Button>
        }
      />
      <div className="body">
        <div className="stack" style={{ maxWidth: 920, gap: 16 }}>
          <Note
            tone="run"
            icon={IconTrash}
            title={
              <>
                Removed <Ago at={at} /> by {deployment.actor.name}: nothing of it runs any more.
              </>
            }
          >
            The endpoint answers no more. What it was made from is kept as a record.
          </Note>
          <Card title="Made from" aside={<span className="faint small num">revision {deployment.revision}</span>}>
            <SpecFacts deployment={deployment} />
          </Card>
          <Revisions deployment={deployment} />
        </div>
      </div>
    </>
  );
}

function Notes({ deployment, silent }: { deployment: DeploymentDetail; silent: boolean }) {
  const { waiting, error, state, stateReason } = deployment;
  const explained = error !== null && stateReason.includes(error.message);
  // A queued or available one has said all with its pill and the notes below.
  const quiet =
    state === "available" ||
    (waiting !== null && !silent) ||
    explained ||
    (deployment.observed?.conditions ?? []).some((each) => !each.ok && stateReason.includes(each.message));
  if (quiet && waiting === null && error === null) return null;
  return (
    <div
      className="stack"
      style={{ padding: "12px var(--pad)", borderBottom: "1px solid var(--line)", gap: 8, flex: "none" }}
    >
      {silent ? (
        <Note tone="warn" icon={IconHelpCircle} title={<Words text={stateReason} />}>
          {deployment.observedAt !== null ? (
            <>
              What it said last, <Ago at={deployment.observedAt} />, is shown in grey; whether it still holds is
              unknown. The endpoint does not need the link: it answers as long as replicas run.
            </>
          ) : (
            "Nothing was heard of it yet."
          )}
        </Note>
      ) : (
        !quiet && (
          <Note
            tone={state === "failed" || state === "refused" ? "bad" : state === "degraded" ? "warn" : "run"}
            {...(state === "refused" ? { icon: IconBan } : {})}
            title={<Words text={stateReason} />}
          />
        )
      )}
      {waiting && <WaitingNote waiting={waiting} />}
      {error && <ErrorNote error={error} />}
    </div>
  );
}

function Card({
  title,
  aside,
  children,
  flush,
}: {
  title: string;
  aside?: ReactNode;
  children: ReactNode;
  flush?: boolean;
}) {
  return (
    <section className="card" aria-label={title}>
      <div className="card-head">
        <h2>{title}</h2>
        {aside}
      </div>
      {flush ? children : <div className="card-body">{children}</div>}
    </section>
  );
}
const LastHeard = ({ at }: { at: number | null }) => (
  <span className="faint small">
    as heard <Ago at={at} />, unknown now
  </span>
);

const CONDITION_WORDS: Record<Condition["type"], [ok: string, not: string]> = {
  available: ["As many replicas are ready as are wanted", "Fewer replicas are ready than wanted"],
  updated: ["The wanted revision serves", "The wanted revision does not serve in full"],
  endpoint: ["The endpoint takes requests", "The endpoint takes no requests"],
  engine: ["The engine answers", "The engine does not answer"],
};
const CONDITION_OK: Look = { ...REPLICA_LOOKS.ready, word: "OK" };
const CONDITION_NOT: Look = { ...REPLICA_LOOKS.unready, word: "Not OK" };
/** Of a deployment that serves nothing. */
const CONDITION_BAD: Look = { ...REPLICA_LOOKS.crashed, word: "Not OK" };

const textOf = (value: unknown) => (typeof value === "string" && value !== "" ? value : undefined);
const countOf = (value: unknown) =>
  typeof value === "number" && Number.isInteger(value) && value > 0 ? value : undefined;

/** The log that a condition's details name, at the record they name. */
function logOf(details: Record<string, unknown> | undefined): LogAt | null {
  const replica = textOf(details?.["replica"]);
  if (replica === undefined) return null;
  const start = countOf(details?.["start"]);
  const line = countOf(details?.["logSeq"]) ?? countOf(details?.["seq"]);
  return { replica, ...(start ? { start } : {}), ...(line ? { line } : {}) };
}

function Conditions({
  deployment,
  silent,
  onLog,
}: {
  deployment: DeploymentDetail;
  silent: boolean;
  onLog: (at: LogAt) => void;
}) {
  const conditions = deployment.observed?.conditions ?? [];
  return (
    <Card title="Conditions" flush aside={silent && conditions.length > 0 && <LastHeard at={deployment.observedAt} />}>
      {conditions.length === 0 ? (
        <div className="card-body dim">
          {deployment.appliedGeneration === null
            ? "Nothing was heard yet: the conditions show when an agent has taken it."
            : "The agent has not said yet how it stands."}
        </div>
      ) : (
        <ul className="list">
          {conditions.map((each, n) => {
            // Of a lost replica two conditions tell the same.
            const same =
              !each.ok && conditions.slice(0, n).some((other) => !other.ok && other.message === each.message);
            const log = each.ok || same ? null : logOf(each.details);
            const rule = textOf(each.details?.["rule"]);
            const words = CONDITION_WORDS[each.type];
            const title = words ? words[each.ok ? 0 : 1] : each.type;
            return (
              <li key={each.type} className={`condition${silent ? " stale" : ""}`}>
                <span className="mark">
                  <StatusIcon
                    look={
                      silent
                        ? UNKNOWN_LOOK
                        : each.ok
                          ? CONDITION_OK
                          : deployment.state === "failed"
                            ? CONDITION_BAD
                            : CONDITION_NOT
                    }
                  />
                  <span className="sr">
                    {silent ? `Unknown; was ${each.ok ? "OK" : "not OK"}` : each.ok ? "OK" : "Not OK"}
                  </span>
                </span>
                <div className="grow">
                  <div style={{ fontWeight: 550 }}>{title}</div>
                  {!(each.ok && ["", title, `${title}.`].includes(each.message)) && (
                    <div className="dim">
                      <Words text={same ? "For the same reason." : each.message} />
                    </div>
                  )}
                  {each.fix && !same && (
                    <div className="dim">
                      <Words text={each.fix} />
                    </div>
                  )}
                  {!each.ok && !same && (
                    <div className="meta">
                      <span className="mono">{each.code}</span>
                      {rule && <span className="mono">{rule}</span>}
                      {log && (
                        <Button
                          variant="default"
                          size="compact-xs"
                          leftSection={<IconFileText size={13} />}
                          onClick={() => onLog(log)}
                        >
                          {log.line ? `Log of ${log.replica} at line ${log.line}` : `Log of ${log.replica}`}
                        </Button>
                      )}
                    </div>
                  )}
                </div>
                <span className="faint small nowrap" title={`since ${formatTime(each.since)}`}>
                  {silent ? `since ${formatClock(each.since)}` : <Since at={each.since} />}
                </span>
              </li>
            );
          })}
        </ul>
      )}
    </Card>
  );
}

function Since({ at }: { at: number }) {
  const now = useNow();
  return <span className="num">{now - at < 1000 ? "just now" : `for ${formatAge(now - at)}`}</span>;
}

type Exit = NonNullable<Replica["lastExit"]>;
const EXIT_WORDS: Record<Exit["reason"], string> = {
  exit: "ended by itself",
  killed: "was killed",
  "out-of-memory": "ran out of memory",
  removed: "was removed",
  unknown: "ended, nobody saw how",
};
/** Signals that come from outside; another one is what a program's own fault ends it with. */
const SENT = new Set(["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"]);
/** How a start of a replica ended: "was killed, SIGKILL". */
function exitWords({ reason, signal, code }: Exit): string {
  const words =
    reason === "exit" && signal !== null
      ? SENT.has(signal)
        ? "was killed"
        : "crashed"
      : (EXIT_WORDS[reason] ?? reason);
  return signal !== null ? `${words}, ${signal}` : code !== null ? `${words}, code ${code}` : words;
}

function Replicas({
  replicas,
  deployment,
  silent,
  onLog,
}: {
  replicas: Replica[];
  deployment: DeploymentDetail;
  silent: boolean;
  onLog: (at: LogAt) => void;
}) {
  return (
    <Card title="Replicas" flush aside={silent && deployment.observed && <LastHeard at={deployment.observedAt} />}>
      {replicas.length === 0 ? (
        <div className="card-body dim">
          {deployment.observed === null
            ? "None was heard of yet."
            : deployment.spec.replicas === 0
              ? "None: 0 are wanted, so nothing answers at the endpoint."
              : "None yet."}
        </div>
      ) : (
        <div className="scroll-x" tabIndex={0} role="region" aria-label="Table of replicas">
          <table className={`plain-table replicas${silent ? " stale" : ""}`}>
            <thead>
              <tr>
                <th>Replica</th>
                <th>State</th>
                <th className="right">Running</th>
                <th className="right">Starts</th>
                <th>Last end</th>
                <th>
                  <span className="sr">Log</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {replicas.map((replica) => (
                <ReplicaRow
                  key={replica.name}
                  replica={replica}
                  deployment={deployment}
                  silent={silent}
                  onLog={onLog}
                />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {deployment.observed?.isolated === false && !silent && (
        <div style={{ padding: 14, borderTop: "1px solid var(--line)" }}>
          <Isolation engine={{ engine: deployment.observed.engine, isolated: false }} />
        </div>
      )}
    </Card>
  );
}

function ReplicaRow({
  replica,
  deployment,
  silent,
  onLog,
}: {
  replica: Replica;
  deployment: DeploymentDetail;
  silent: boolean;
  onLog: (at: LogAt) => void;
}) {
  const now = useNow(replica.startedAt !== null && !silent);
  const exit = replica.lastExit;
  return (
    <tr>
      <td>
        <span className="row" style={{ gap: 6 }}>
          <span className="mono" style={{ fontWeight: 600 }}>
            {replica.name}
          </span>
          {replica.revision !== deployment.revision && (
            <span className="tag num" title={`Revision ${deployment.revision} is wanted`}>
              old revision
            </span>
          )}
          {replica.adopted && (
            <span
              className="tag accent"
              title="A restarted agent found it running and took it over; it was not started again"
            >
              adopted
            </span>
          )}
        </span>
      </td>
      <td>
        {silent ? (
          <span className="row" style={{ gap: 6 }}>
            <Status look={UNKNOWN_LOOK} />
            <span className="faint small nowrap">was {lookOf(REPLICA_LOOKS, replica.state).word.toLowerCase()}</span>
          </span>
        ) : (
          <div>
            <span className="row" style={{ gap: 8 }}>
              <Status look={lookOf(REPLICA_LOOKS, replica.state)} />
              <span className="faint small nowrap num">
                <Since at={replica.since} />
              </span>
            </span>
            {replica.message && (
              <div className="dim small why">
                <Words text={replica.message} /> {replica.code && <span className="mono faint">{replica.code}</span>}
              </div>
            )}
          </div>
        )}
      </td>
      <td
        className="right num nowrap"
        title={replica.startedAt === null ? undefined : `since ${formatTime(replica.startedAt)}`}
      >
        {replica.startedAt === null ? (
          <span className="faint">–</span>
        ) : silent ? (
          <span className="faint">unknown</span>
        ) : (
          formatAge(now - replica.startedAt)
        )}
      </td>
      <td className="right num">{replica.starts}</td>
      <td>
        {exit === null ? (
          <span className="faint">none</span>
        ) : (
          <div className="small">
            <div className="clip" title={formatTime(exit.at)}>
              {exitWords(exit)}
            </div>
            <div className="faint nowrap">
              start {exit.start}, <Ago at={exit.at} />
              {exit.logSeq > 0 && (
                <>
                  {" · "}
                  <button
                    type="button"
                    className="link as-link"
                    onClick={() => onLog({ replica: replica.name, start: exit.start, line: exit.logSeq })}
                  >
                    its log
                    <span className="sr">
                      {" "}
                      of {replica.name}, start {exit.start}
                    </span>
                  </button>
                </>
              )}
            </div>
          </div>
        )}
      </td>
      <td className="right">
        {replica.starts > 0 && (
          <Button
            variant="default"
            size="compact-xs"
            aria-label={`Log of ${replica.name}`}
            onClick={() => onLog({ replica: replica.name })}
          >
            Log
          </Button>
        )}
      </td>
    </tr>
  );
}

function Hour({ deployment, silent }: { deployment: DeploymentDetail; silent: boolean }) {
  const query = useQuery(rollupsQuery(deployment.id));
  if (query.error && !query.data) return <ProblemNote error={query.error} onRetry={() => void query.refetch()} />;
  return <Traffic rollups={query.data ?? []} silent={silent} />;
}

function Endpoint({ deployment, silent }: { deployment: DeploymentDetail; silent: boolean }) {
  const { endpoint, name } = deployment;
  if (endpoint === null)
    return (
      <Card title="Endpoint">
        <span className="dim">The agent names the address when it has taken the deployment.</span>
      </Card>
    );
  const curl = `curl -H "Authorization: Bearer $SALLYPORT_ENDPOINT_KEY" -H "Content-Type: application/json" -d @request.json ${endpoint}/v2/models/${name}/infer`;
  return (
    <Card title="Endpoint" aside={silent && <LastHeard at={deployment.observedAt} />}>
      <div className="stack">
        <div className={silent ? "stale" : undefined}>
          <Id value={endpoint} />
          <span className="dim">
            Open Inference Protocol v2, for clients in the agent's network. Requests never pass the control plane.
          </span>
        </div>
        <CopyLine text={curl} />
        <div className="stack" style={{ gap: 6 }}>
          <span className="dim">
            The key lies with the agent; the control plane never has it. On the agent's machine this prints it:
          </span>
          <CopyLine text={`sallyport-agent endpoint ${name}`} />
        </div>
      </div>
    </Card>
  );
}

function Logs({
  deployment,
  silent,
  at,
  set,
}: {
  deployment: DeploymentDetail;
  silent: boolean;
  at: Partial<LogAt>;
  set: (change: { replica?: string | undefined; start?: number | undefined; line?: number | undefined }) => void;
}) {
  const known = deployment.observed?.replicas ?? [];
  // The one that a reader most likely wants: what crashes, else what has begun last.
  const wanted =
    at.replica ??
    (known.find((each) => each.state === "crashed" && each.starts > 0) ?? known.find((each) => each.starts > 0))?.name;
  if (wanted === undefined)
    return (
      <Empty icon={IconStack2} title="No replica has begun yet">
        Each start of a replica has a log of its own; it shows here as soon as there is one.
      </Empty>
    );
  const replica = known.find((each) => each.name === wanted);
  const newest = Math.max(replica?.starts ?? 0, at.start ?? 0, 1);
  const start = at.start ?? newest;
  const live = replica !== undefined && replica.startedAt !== null && start === replica.starts;
  return (
    <section
      style={{ display: "flex", flexDirection: "column", flex: 1, minHeight: 0 }}
      aria-label={`Log of replica ${wanted}`}
    >
      <div className="logpick">
        <Select
          aria-label="Replica"
          w={210}
          allowDeselect={false}
          value={wanted}
          onChange={(value) => set({ replica: value ?? undefined, start: undefined, line: undefined })}
          data={[...new Set([...known.filter((each) => each.starts > 0).map((each) => each.name), wanted])].map(
            (name) => {
              const each = known.find((one) => one.name === name);
              return {
                value: name,
                label: `${name}, ${each ? (silent ? "unknown" : lookOf(REPLICA_LOOKS, each.state).word.toLowerCase()) : "gone"}`,
              };
            },
          )}
        />
        <Select
          aria-label="Start"
          w={150}
          allowDeselect={false}
          value={String(start)}
          onChange={(value) =>
            set({ replica: wanted, start: value === String(newest) ? undefined : Number(value), line: undefined })
          }
          data={Array.from({ length: Math.min(newest, 100) }, (_, n) => newest - n).map((n) => ({
            value: String(n),
            label: n === newest ? `Start ${n}, newest` : `Start ${n}`,
          }))}
        />
        {replica?.lastExit && replica.lastExit.start === start && (
          <span className="dim small clip">
            {exitWords(replica.lastExit)}, <Ago at={replica.lastExit.at} />
          </span>
        )}
      </div>
      <LogView
        key={`${wanted} ${start}`}
        log={replicaLog(deployment.id, deployment.name, wanted, start)}
        live={live}
        silent={silent}
        line={at.line}
        onLine={(line) => set({ replica: wanted, start, line })}
      />
    </section>
  );
}

function Remove({ deployment, onClose }: { deployment: DeploymentDetail; onClose: () => void }) {
  const client = useQueryClient();
  const navigate = useNavigate();
  const [base] = useState(deployment);
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const stale = problemCode(error) === "PRECONDITION_FAILED" || deployment.generation !== base.generation;
  const go = async () => {
    if (typed !== base.name) return;
    setBusy(true);
    setError(null);
    try {
      await api.delete(`/v1/deployments/${base.id}`, { "if-match": `"${base.generation}"` });
      await client.invalidateQueries({ queryKey: ["deployments"] });
      toast(`${base.name} is being removed.`);
      await navigate({ to: "/deployments" });
    } catch (caught) {
      setError(caught);
      setBusy(false);
      if (problemCode(caught) === "PRECONDITION_FAILED") await client.invalidateQueries({ queryKey: ["deployments"] });
    }
  };
  return (
    <Modal opened onClose={onClose} title={<b>Remove {base.name}?</b>} size={460}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void go();
        }}
      >
        <div>
          Its replicas end the requests they have and are stopped; the endpoint{" "}
          <span className="mono">/{base.name}</span> answers no more, and its key is forgotten. The model stays where it
          is.
        </div>
        <TextInput
          label={`Type ${base.name} to remove it`}
          autoComplete="off"
          spellCheck={false}
          value={typed}
          onChange={(event) => setTyped(event.currentTarget.value)}
          data-autofocus
        />
        {stale ? (
          <Note tone="warn" title="It has changed since you opened this.">
            {deployment.actor.name} made generation {deployment.generation}, so nothing was done. Close this, look at
            it, then decide again.
          </Note>
        ) : (
          error !== null && <ProblemNote error={error} />
        )}
        <div className="row" style={{ justifyContent: "flex-end" }}>
          <Button variant="default" onClick={onClose}>
            Keep it
          </Button>
          <Button color="red" type="submit" loading={busy} disabled={typed !== base.name || stale}>
            Remove {base.name}
          </Button>
        </div>
      </form>
    </Modal>
  );
}
