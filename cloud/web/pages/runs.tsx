// All runs, newest first.
import { Button } from "@mantine/core";
import { IconActivity, IconFilterOff, IconPlayerPlay } from "@tabler/icons-react";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useMemo } from "react";
import { useRuns } from "../api/queries.ts";
import type { Run } from "../api/types.ts";
import { shortId } from "../parts/format.ts";
import { ListBar } from "../parts/list-bar.tsx";
import { Empty, ProblemNote, RowSkeletons } from "../parts/notes.tsx";
import { PageHead } from "../parts/page.tsx";
import { RUN_LOOKS, RunStatus, lookOf } from "../parts/status.tsx";
import { DataTable, type Column } from "../parts/table.tsx";
import { Ago, Took } from "../parts/time.tsx";

function StepsBar({ run }: { run: Run }) {
  const look = lookOf(RUN_LOOKS, run.state);
  return (
    <span className="row" style={{ gap: 8 }}>
      <span className="bar" style={{ width: 56, flex: "none" }} aria-hidden>
        <i
          style={{
            width: `${(run.stepsDone / Math.max(1, run.stepsTotal)) * 100}%`,
            background: `var(--${look.tone}-bar)`,
          }}
        />
      </span>
      <span className="dim num small">
        {run.stepsDone} / {run.stepsTotal}
      </span>
    </span>
  );
}

const COLUMNS: Column<Run>[] = [
  { key: "state", title: "State", width: "112px", render: (run) => <RunStatus run={run} /> },
  {
    key: "pipeline",
    title: "Pipeline",
    width: "minmax(190px, 2fr)",
    render: (run) => (
      <div className="two">
        <div className="clip">
          <Link to="/runs/$id" params={{ id: run.id }} className="main-link">
            {run.pipeline}
          </Link>
        </div>
        <div className="clip">
          {run.error ? (
            <span className="tone-bad">{run.error.message}</span>
          ) : run.waiting ? (
            run.waiting.text
          ) : (
            <span className="mono">{shortId(run.id)}</span>
          )}
        </div>
      </div>
    ),
  },
  { key: "steps", title: "Steps", width: "112px", render: (run) => <StepsBar run={run} /> },
  {
    key: "took",
    title: "Duration",
    width: "82px",
    right: true,
    render: (run) =>
      run.state === "unknown" ? <span className="faint">unknown</span> : <Took from={run.startedAt} to={run.endedAt} />,
  },
  {
    key: "agent",
    title: "Agent",
    width: "minmax(100px, 1fr)",
    render: (run) => (
      <span className="dim" title={`Pool ${run.pool.name}`}>
        {run.agent?.name ?? run.pool.name}
      </span>
    ),
  },
  {
    key: "who",
    title: "Started by",
    width: "minmax(90px, 0.8fr)",
    wide: true,
    render: (run) => <span className="dim">{run.actor.name}</span>,
  },
  {
    key: "when",
    title: "Started",
    width: "86px",
    right: true,
    render: (run) => <Ago at={run.createdAt} className="dim" />,
  },
];

export function Runs() {
  const search = useSearch({ from: "/frame/runs" });
  const navigate = useNavigate({ from: "/runs" });
  const runs = useRuns();
  const all = runs.items ?? [];
  const q = search.q?.toLowerCase() ?? "";
  const rows = useMemo(
    () =>
      (runs.items ?? []).filter(
        (run) =>
          (!search.state || run.state === search.state) &&
          (q === "" ||
            `${run.pipeline} ${run.id} ${run.pool.name} ${run.agent?.name ?? ""} ${run.actor.name} ${run.error?.message ?? ""} ${run.error?.code ?? ""}`
              .toLowerCase()
              .includes(q)),
      ),
    [runs.items, search.state, q],
  );
  const set = (change: Record<string, string | undefined>) =>
    void navigate({ search: (old) => ({ ...old, ...change }) as never, replace: true });
  return (
    <>
      <PageHead
        title="Runs"
        actions={
          <Button leftSection={<IconPlayerPlay size={14} />} renderRoot={(props) => <Link to="/runs/new" {...props} />}>
            Start a run
          </Button>
        }
      />
      <div className="body flush">
        {all.length > 0 && (
          <ListBar
            items={all}
            shown={rows.length}
            thing="run"
            filter="Filter by pipeline, id, agent, person"
            search={search}
            looks={RUN_LOOKS}
            onChange={set}
            after={runs.hasNextPage && " loaded"}
          />
        )}
        {runs.error && (
          <div style={{ padding: "12px var(--pad)" }}>
            <ProblemNote error={runs.error} onRetry={() => void runs.refetch()} />
          </div>
        )}
        {runs.isPending ? (
          <RowSkeletons height={48} />
        ) : all.length === 0 ? (
          !runs.error && (
            <Empty
              icon={IconActivity}
              title="No runs yet"
              action={
                <Button
                  leftSection={<IconPlayerPlay size={14} />}
                  renderRoot={(props) => <Link to="/runs/new" {...props} />}
                >
                  Start a run
                </Button>
              }
            >
              A pipeline runs where the data is: its steps, their logs and what they made will be listed here.
            </Empty>
          )
        ) : rows.length === 0 ? (
          <Empty
            icon={IconFilterOff}
            title="No run matches"
            action={
              <>
                <Button variant="default" onClick={() => void navigate({ search: {} })}>
                  Clear the filter
                </Button>
                {runs.hasNextPage && (
                  <Button variant="default" loading={runs.isFetchingNextPage} onClick={() => void runs.fetchNextPage()}>
                    Look further back
                  </Button>
                )}
              </>
            }
          >
            None of the {all.length} {runs.hasNextPage ? "newest runs" : "runs"} has what the filter asks for.
          </Empty>
        ) : (
          <DataTable
            label="Runs"
            columns={COLUMNS}
            rows={rows}
            rowHeight={48}
            rowKey={(run) => run.id}
            onOpen={(run) => void navigate({ to: "/runs/$id", params: { id: run.id } })}
            onEnd={runs.hasNextPage && !runs.isFetchingNextPage ? () => void runs.fetchNextPage() : undefined}
          />
        )}
      </div>
    </>
  );
}
