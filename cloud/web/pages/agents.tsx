// The fleet as a table, and the enrolments beside it: what is waiting for first contact, and joins that were refused.
import { Button } from "@mantine/core";
import { IconFilterOff, IconKey, IconPlus, IconServer2 } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import { api } from "../api/client.ts";
import { agentsQuery, enrollmentsQuery } from "../api/queries.ts";
import type { Agent, Enrollment } from "../api/types.ts";
import { Confirm } from "../parts/confirm.tsx";
import { plural } from "../parts/format.ts";
import { Empty, ProblemNote, RowSkeletons } from "../parts/notes.tsx";
import { Chips, Filter, PageHead, Tabs } from "../parts/page.tsx";
import { AGENT_LOOKS, AgentStatus, ENROLLMENT_LOOKS, Status, lookOf } from "../parts/status.tsx";
import { DataTable, type Column } from "../parts/table.tsx";
import { Ago } from "../parts/time.tsx";

/** Whether what the agent last said of itself still holds. */
export const isHere = (agent: Agent): boolean =>
  agent.state === "connected" || agent.state === "paused" || agent.state === "draining";

const COLUMNS: Column<Agent>[] = [
  {
    key: "name",
    title: "Name",
    width: "minmax(150px, 2fr)",
    render: (agent) => (
      <Link to="/agents/$id" params={{ id: agent.id }} className="main-link">
        {agent.name}
      </Link>
    ),
  },
  {
    key: "pool",
    title: "Pool",
    width: "minmax(90px, 1fr)",
    render: (agent) => <span className="dim">{agent.pool.name}</span>,
  },
  {
    key: "state",
    title: "State",
    width: "minmax(150px, 1.3fr)",
    render: (agent) => (
      <span className="row">
        <AgentStatus agent={agent} />
        {agent.alarms.length > 0 && <span className="tag bad">{plural(agent.alarms.length, "alarm")}</span>}
      </span>
    ),
  },
  { key: "seen", title: "Last seen", width: "100px", render: (agent) => <Ago at={agent.lastSeenAt} className="dim" /> },
  {
    key: "running",
    title: "Running",
    width: "90px",
    right: true,
    render: (agent) =>
      !agent.status ? (
        <span className="faint">–</span>
      ) : isHere(agent) ? (
        `${agent.status.running.length} / ${agent.status.limits.runs}`
      ) : (
        <span className="faint" title="The agent is not connected; what runs there is not known.">
          unknown
        </span>
      ),
  },
  {
    key: "rtt",
    title: "Round trip",
    width: "90px",
    right: true,
    wide: true,
    render: (agent) =>
      isHere(agent) && agent.rttMs !== null ? (
        `${agent.rttMs < 10 ? agent.rttMs.toFixed(1) : Math.round(agent.rttMs)} ms`
      ) : (
        <span className="faint">–</span>
      ),
  },
  {
    key: "host",
    title: "Host",
    width: "minmax(110px, 1.2fr)",
    wide: true,
    render: (agent) => <span className="dim">{agent.status?.host.hostname ?? "–"}</span>,
  },
  {
    key: "version",
    title: "Version",
    width: "80px",
    render: (agent) => <span className="dim num">{agent.version ?? "–"}</span>,
  },
];

export function Agents() {
  const search = useSearch({ from: "/frame/agents" });
  const navigate = useNavigate({ from: "/agents" });
  const agents = useQuery(agentsQuery);
  const enrollments = useQuery(enrollmentsQuery);
  const view = search.view === "enrolments" ? "enrolments" : "agents";
  const all = agents.data ?? [];
  const rows = useMemo(() => {
    const q = search.q?.toLowerCase() ?? "";
    return (agents.data ?? []).filter(
      (agent) =>
        (!search.state || agent.state === search.state) &&
        (q === "" ||
          `${agent.name} ${agent.pool.name} ${agent.status?.host.hostname ?? ""} ${agent.version ?? ""} ${agent.remoteAddress ?? ""}`
            .toLowerCase()
            .includes(q)),
    );
  }, [agents.data, search.q, search.state]);
  const states = [...new Set(all.map((agent) => agent.state))];
  const open = (enrollments.data ?? []).filter((each) => each.state === "waiting").length;
  return (
    <>
      <PageHead
        title="Agents"
        actions={
          <Button leftSection={<IconPlus size={14} />} renderRoot={(props) => <Link to="/agents/new" {...props} />}>
            Add agent
          </Button>
        }
      />
      <Tabs
        label="Agents and enrolments"
        value={view}
        onChange={(next) => void navigate({ search: next === "agents" ? {} : { view: next } })}
        tabs={[
          { value: "agents", word: <>Fleet {agents.data && <span className="tag num">{all.length}</span>}</> },
          {
            value: "enrolments",
            word: <>Enrolments {open > 0 && <span className="tag accent num">{open} open</span>}</>,
          },
        ]}
      />
      <div className="body flush">
        {view === "enrolments" ? (
          <Enrolments items={enrollments.data} error={enrollments.error} retry={() => void enrollments.refetch()} />
        ) : (
          <>
            {all.length > 0 && (
              <div className="toolbar">
                <Filter
                  label="Filter by name, pool, host"
                  value={search.q ?? ""}
                  onChange={(q) =>
                    void navigate({ search: (old) => ({ ...old, q: q || undefined }) as never, replace: true })
                  }
                />
                {states.length > 1 && (
                  <Chips
                    label="State"
                    value={search.state ?? ""}
                    onChange={(state) =>
                      void navigate({
                        search: (old) => ({ ...old, state: state || undefined }) as never,
                        replace: true,
                      })
                    }
                    choices={[
                      { value: "", word: "All" },
                      ...states.map((state) => ({
                        value: state,
                        word: lookOf(AGENT_LOOKS, state).word,
                        n: all.filter((agent) => agent.state === state).length,
                      })),
                    ]}
                  />
                )}
                <span className="total">
                  {rows.length === all.length
                    ? plural(all.length, "agent")
                    : `${rows.length} of ${plural(all.length, "agent")}`}
                </span>
              </div>
            )}
            {agents.error && (
              <div style={{ padding: "12px var(--pad)" }}>
                <ProblemNote error={agents.error} onRetry={() => void agents.refetch()} />
              </div>
            )}
            {agents.isPending ? (
              <RowSkeletons />
            ) : all.length === 0 ? (
              !agents.error && (
                <Empty
                  icon={IconServer2}
                  title="No agents yet"
                  action={
                    <Button
                      leftSection={<IconPlus size={14} />}
                      renderRoot={(props) => <Link to="/agents/new" {...props} />}
                    >
                      Add agent
                    </Button>
                  }
                >
                  An agent runs beside your data and does the work there. It dials out once; nothing on its side has to
                  be opened.
                </Empty>
              )
            ) : rows.length === 0 ? (
              <Empty
                icon={IconFilterOff}
                title="No agent matches"
                action={
                  <Button variant="default" onClick={() => void navigate({ search: {} })}>
                    Clear the filter
                  </Button>
                }
              >
                There {all.length === 1 ? "is 1 agent" : `are ${all.length} agents`}, none with this filter.
              </Empty>
            ) : (
              <DataTable
                label="Agents"
                columns={COLUMNS}
                rows={rows}
                rowKey={(agent) => agent.id}
                onOpen={(agent) => void navigate({ to: "/agents/$id", params: { id: agent.id } })}
              />
            )}
          </>
        )}
      </div>
    </>
  );
}

function Enrolments({ items, error, retry }: { items: Enrollment[] | undefined; error: unknown; retry: () => void }) {
  const [withdraw, setWithdraw] = useState<Enrollment | null>(null);
  const enrollments = useQuery(enrollmentsQuery);
  if (error) {
    return (
      <div style={{ padding: 24 }}>
        <ProblemNote error={error} onRetry={retry} />
      </div>
    );
  }
  if (!items) return <RowSkeletons rows={4} />;
  if (items.length === 0) {
    return (
      <Empty
        icon={IconKey}
        title="No enrolments yet"
        action={<Button renderRoot={(props) => <Link to="/agents/new" {...props} />}>Add agent</Button>}
      >
        Each agent joins with a secret that works once. Used, open and refused ones are listed here.
      </Empty>
    );
  }
  return (
    <div style={{ overflow: "auto" }}>
      <table className="plain-table wide-pad">
        <thead>
          <tr>
            <th>Pool</th>
            <th>Name</th>
            <th>State</th>
            <th>Made</th>
            <th>Expires</th>
            <th>Refused joins</th>
            <th />
          </tr>
        </thead>
        <tbody>
          {items.map((each) => (
            <tr key={each.id}>
              <td style={{ fontWeight: 550 }}>{each.pool.name}</td>
              <td className="dim">{each.name ?? "that of its machine"}</td>
              <td>
                <Status look={lookOf(ENROLLMENT_LOOKS, each.state)} />
              </td>
              <td className="dim nowrap">
                <Ago at={each.createdAt} />
              </td>
              <td className="dim nowrap">{each.state === "waiting" ? <Ago at={each.expiresAt} /> : "–"}</td>
              <td>
                {each.refusals.length === 0 ? (
                  <span className="faint">none</span>
                ) : (
                  <div>
                    <div className="tone-bad">{each.refusals[0]!.message}</div>
                    <div className="faint small">
                      <span className="mono">{each.refusals[0]!.code}</span>, <Ago at={each.refusals[0]!.at} />
                      {each.refusals[0]!.remoteAddress && <> from {each.refusals[0]!.remoteAddress}</>}
                      {each.refusals.length > 1 && <>, and {each.refusals.length - 1} more</>}
                    </div>
                  </div>
                )}
              </td>
              <td className="right">
                {each.agent ? (
                  <Link to="/agents/$id" params={{ id: each.agent }} className="link nowrap">
                    Show agent
                  </Link>
                ) : each.state === "waiting" ? (
                  <Button variant="default" size="compact-xs" onClick={() => setWithdraw(each)}>
                    Withdraw
                  </Button>
                ) : null}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <Confirm
        opened={withdraw !== null}
        onClose={() => setWithdraw(null)}
        title="Withdraw this enrolment?"
        verb="Withdraw"
        act={async () => {
          await api.delete(`/v1/enrollments/${withdraw!.id}`);
          await enrollments.refetch();
        }}
      >
        Its secret stops working at once. An agent that already joined with another secret is not touched.
      </Confirm>
    </div>
  );
}
