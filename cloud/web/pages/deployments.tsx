// All deployments: what is served where, how well, and how busy it is.
import { Button } from "@mantine/core";
import { IconFilterOff, IconPlus, IconRocket } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useMemo } from "react";
import { deploymentsQuery, poolsQuery } from "../api/queries.ts";
import type { Deployment } from "../api/types.ts";
import { isFresh } from "../deployments/traffic-charts.tsx";
import { CopyLine } from "../parts/copy.tsx";
import { formatLatency, formatRate } from "../parts/format.ts";
import { ListBar } from "../parts/list-bar.tsx";
import { Empty, ProblemNote, RowSkeletons } from "../parts/notes.tsx";
import { PageHead } from "../parts/page.tsx";
import { DEPLOYMENT_LOOKS, DeploymentStatus } from "../parts/status.tsx";
import { DataTable, type Column } from "../parts/table.tsx";
import { Ago, useNow } from "../parts/time.tsx";

/** Ready of wanted. Of a silent agent it is what was so, and said to be that. */
export function ReplicaCount({ deployment }: { deployment: Pick<Deployment, "state" | "replicasReady" | "spec"> }) {
  const { state, replicasReady: ready, spec } = deployment;
  const unknown = state === "unknown";
  if (ready === null)
    return (
      <span className="faint num" title="Nothing was heard yet">
        – / {spec.replicas}
      </span>
    );
  return (
    <span
      className={`num${unknown ? " faint" : ready < spec.replicas && state !== "queued" ? " tone-warn" : ""}`}
      title={
        unknown
          ? `${ready} of ${spec.replicas} were ready when the agent last said so`
          : `${ready} of ${spec.replicas} ready`
      }
    >
      {unknown && "was "}
      {ready} / {spec.replicas}
    </span>
  );
}

function Figure({ deployment, of }: { deployment: Deployment; of: "rate" | "p95" }) {
  const now = useNow();
  const { rollup, state } = deployment;
  if (rollup === null || state === "unknown" || !isFresh(rollup, now)) return <span className="faint">–</span>;
  return <span className="num">{of === "rate" ? formatRate(rollup.requests) : formatLatency(rollup.p95Ms)}</span>;
}

const COLUMNS: Column<Deployment>[] = [
  { key: "state", title: "State", width: "116px", render: (each) => <DeploymentStatus deployment={each} /> },
  {
    key: "name",
    title: "Deployment",
    width: "minmax(170px, 2fr)",
    render: (each) => (
      <div className="two">
        <div className="clip">
          <Link to="/deployments/$id" params={{ id: each.id }} className="main-link">
            {each.name}
          </Link>
        </div>
        <div className="clip">
          {each.error ? (
            <span className="tone-bad">{each.error.message}</span>
          ) : each.waiting ? (
            each.waiting.text
          ) : each.state === "available" ? (
            <span className="mono">
              {each.spec.model.store}/{each.spec.model.path}
            </span>
          ) : (
            each.stateReason
          )}
        </div>
      </div>
    ),
  },
  {
    key: "where",
    title: "Pool and agent",
    width: "minmax(100px, 1fr)",
    render: (each) => (
      <div className="two">
        <div className="clip">{each.pool.name}</div>
        <div className="clip">{each.agent?.name ?? "no agent yet"}</div>
      </div>
    ),
  },
  {
    key: "replicas",
    title: "Replicas",
    width: "76px",
    right: true,
    render: (each) => <ReplicaCount deployment={each} />,
  },
  {
    key: "revision",
    title: "Revision",
    width: "62px",
    right: true,
    render: (each) => <span className="num dim">{each.revision}</span>,
  },
  {
    key: "rps",
    title: <span title="Requests per second in the last minute">Req/s</span>,
    width: "58px",
    right: true,
    render: (each) => <Figure deployment={each} of="rate" />,
  },
  {
    key: "p95",
    title: <span title="95 of 100 requests of the last minute were answered within">p95</span>,
    width: "66px",
    right: true,
    render: (each) => <Figure deployment={each} of="p95" />,
  },
  {
    key: "age",
    title: "Made",
    width: "82px",
    right: true,
    wide: true,
    render: (each) => <Ago at={each.createdAt} className="dim" />,
  },
];

const NewButton = ({ variant }: { variant?: string }) => (
  <Button
    leftSection={<IconPlus size={14} />}
    {...(variant ? { variant } : {})}
    renderRoot={(props) => <Link to="/deployments/new" {...props} />}
  >
    New deployment
  </Button>
);

export function Deployments() {
  const search = useSearch({ from: "/frame/deployments" });
  const navigate = useNavigate({ from: "/deployments" });
  const query = useQuery(deploymentsQuery);
  const pools = useQuery(poolsQuery);
  const all = query.data ?? [];
  const q = search.q?.toLowerCase() ?? "";
  const rows = useMemo(
    () =>
      (query.data ?? []).filter(
        (each) =>
          (!search.state || each.state === search.state) &&
          (q === "" ||
            `${each.name} ${each.id} ${each.pool.name} ${each.agent?.name ?? ""} ${each.spec.model.store}/${each.spec.model.path} ${each.error?.code ?? ""}`
              .toLowerCase()
              .includes(q)),
      ),
    [query.data, search.state, q],
  );
  const set = (change: Record<string, string | undefined>) =>
    void navigate({ search: (old) => ({ ...old, ...change }) as never, replace: true });
  const pool = pools.data?.find((each) => each.serving.length > 0);
  return (
    <>
      <PageHead title="Deployments" actions={<NewButton />} />
      <div className="body flush">
        {all.length > 0 && (
          <ListBar
            items={all}
            shown={rows.length}
            thing="deployment"
            filter="Filter by name, model, pool, agent"
            search={search}
            looks={DEPLOYMENT_LOOKS}
            onChange={set}
          />
        )}
        {query.error && (
          <div style={{ padding: "12px var(--pad)" }}>
            <ProblemNote error={query.error} onRetry={() => void query.refetch()} />
          </div>
        )}
        {query.isPending ? (
          <RowSkeletons height={48} />
        ) : all.length === 0 ? (
          !query.error && (
            <Empty icon={IconRocket} title="No deployments yet" action={<NewButton />}>
              A deployment serves one model, given by its digest, from replicas that run beside your data. They answer
              behind one endpoint in your own network; requests never pass through the control plane.
              <br />
              <br />
              Begin with a model: open an <code>.onnx</code> file under{" "}
              <Link to="/artifacts" className="link">
                Artifacts
              </Link>{" "}
              or among a run's outputs, and choose Deploy. Or by command:
              <span className="empty-line">
                <CopyLine
                  text={`sallyport deployment apply --wait -f - <<END
pool: ${pool?.name ?? "POOL"}
name: digits
spec: { model: { store: ${pool?.stores[0]?.id ?? "STORE"}, path: models/digits.onnx, digest: "sha256:…" } }
END`}
                />
              </span>
            </Empty>
          )
        ) : rows.length === 0 ? (
          <Empty
            icon={IconFilterOff}
            title="No deployment matches"
            action={
              <Button variant="default" onClick={() => void navigate({ search: {} })}>
                Clear the filter
              </Button>
            }
          >
            None of the {all.length} has what the filter asks for.
          </Empty>
        ) : (
          <DataTable
            label="Deployments"
            columns={COLUMNS}
            rows={rows}
            rowHeight={48}
            rowKey={(each) => each.id}
            onOpen={(each) => void navigate({ to: "/deployments/$id", params: { id: each.id } })}
          />
        )}
      </div>
    </>
  );
}
