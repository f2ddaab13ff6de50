// What the replicas were made from, newest first, each beside what is wanted now; and the way back to one.
import { Button, Modal } from "@mantine/core";
import { IconArrowBackUp } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, problemCode } from "../api/client.ts";
import { revisionsQuery } from "../api/queries.ts";
import type { Deployment, DeploymentDetail, DeploymentDiff, DeploymentRevision } from "../api/types.ts";
import { Copy, Id } from "../parts/copy.tsx";
import { shortDigest } from "../parts/format.ts";
import { Note, ProblemNote, RowSkeletons } from "../parts/notes.tsx";
import { Ago } from "../parts/time.tsx";
import { toast } from "../shell/toasts.tsx";
import { diffSpecs } from "./diff.ts";
import { ChangeList, DiffView } from "./diff-view.tsx";

export function Revisions({ deployment }: { deployment: DeploymentDetail }) {
  const query = useQuery(revisionsQuery(deployment.id));
  const [to, setTo] = useState<DeploymentRevision | null>(null);
  if (!query.data)
    return query.error ? (
      <ProblemNote error={query.error} onRetry={() => void query.refetch()} />
    ) : (
      <section className="card">
        <RowSkeletons rows={2} />
      </section>
    );
  const than = deployment.removedAt === null ? "what is wanted now" : "the last one";
  const serving = new Map<number, number>();
  for (const replica of deployment.removedAt === null ? (deployment.observed?.replicas ?? []) : [])
    if (replica.state === "ready") serving.set(replica.revision, (serving.get(replica.revision) ?? 0) + 1);
  return (
    <>
      <section className="card">
        <ul className="list">
          {query.data.map((revision) => {
            const current = revision.revision === deployment.revision;
            const changes = diffSpecs(deployment.spec, revision.spec, false);
            const ready = serving.get(revision.revision) ?? 0;
            return (
              <li key={revision.revision} className="revision">
                <div className="row" style={{ gap: 10 }}>
                  <b className="num nowrap">Revision {revision.revision}</b>
                  {current && <span className="tag accent">{deployment.removedAt === null ? "wanted" : "last"}</span>}
                  {ready > 0 && deployment.state !== "unknown" && <span className="tag num">{ready} ready</span>}
                  {revision.from !== null && <span className="tag num">repeats {revision.from}</span>}
                  <span className="faint small clip">
                    <Ago at={revision.createdAt} /> by {revision.actor.name}
                  </span>
                  {!current && changes.length > 0 && deployment.state !== "removing" && (
                    <Button
                      ml="auto"
                      variant="default"
                      size="compact-xs"
                      style={{ flex: "none" }}
                      leftSection={<IconArrowBackUp size={13} />}
                      onClick={() => setTo(revision)}
                    >
                      Roll back
                    </Button>
                  )}
                </div>
                <div className="row dim" style={{ gap: 4 }}>
                  <span className="mono clip">
                    {revision.spec.model.store}/{revision.spec.model.path}
                  </span>
                  <span className="mono faint nowrap" title={revision.spec.model.digest}>
                    {shortDigest(revision.spec.model.digest)}
                  </span>
                  <Copy text={revision.spec.model.digest} label="Copy the digest" />
                </div>
                {!current && (
                  <details>
                    <summary>
                      {changes.length === 0
                        ? `The same content as ${than}`
                        : changes.length === 1
                          ? `1 difference from ${than}`
                          : `${changes.length} differences from ${than}`}
                    </summary>
                    {changes.length > 0 && <ChangeList changes={changes} />}
                  </details>
                )}
              </li>
            );
          })}
        </ul>
      </section>
      {to && <RollBack deployment={deployment} to={to} onClose={() => setTo(null)} />}
    </>
  );
}

function RollBack({
  deployment,
  to,
  onClose,
}: {
  deployment: DeploymentDetail;
  to: DeploymentRevision;
  onClose: () => void;
}) {
  const client = useQueryClient();
  // Asked about and applied to the same generation, even when another comes while the dialog is open.
  const [base] = useState(deployment);
  const diff = useQuery({
    queryKey: ["deployments", base.id, "diff", base.generation, "revision", to.revision],
    queryFn: () =>
      api.post<DeploymentDiff>(`/v1/deployments/${base.id}/diff`, {
        spec: { ...to.spec, replicas: base.spec.replicas },
      }),
    retry: false,
    staleTime: Infinity,
  });
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const stale = problemCode(error) === "PRECONDITION_FAILED" || deployment.generation !== base.generation;
  const go = async () => {
    setBusy(true);
    setError(null);
    try {
      const made = await api.post<Deployment>(
        `/v1/deployments/${base.id}/rollback`,
        { revision: to.revision },
        { "if-match": `"${base.generation}"` },
      );
      await client.invalidateQueries({ queryKey: ["deployments"] });
      toast(`${base.name} goes back to the content of revision ${to.revision}, as revision ${made.revision}.`);
      onClose();
    } catch (caught) {
      setError(caught);
      setBusy(false);
      if (problemCode(caught) === "PRECONDITION_FAILED") await client.invalidateQueries({ queryKey: ["deployments"] });
    }
  };
  return (
    <Modal
      opened
      onClose={onClose}
      title={
        <b>
          Roll {base.name} back to revision {to.revision}?
        </b>
      }
      size={560}
    >
      <div className="stack">
        <span className="dim">
          Its content is applied again{diff.data ? `, as revision ${diff.data.revision}` : ""}; as many replicas stay
          wanted as now.
        </span>
        {diff.data ? (
          <DiffView diff={diff.data} />
        ) : diff.error ? (
          <ProblemNote error={diff.error} />
        ) : (
          <span className="dim">Comparing…</span>
        )}
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
            Keep as it is
          </Button>
          <Button
            loading={busy}
            disabled={stale || !diff.data || diff.data.refusals.length > 0}
            onClick={() => void go()}
            data-autofocus
          >
            Roll back
          </Button>
        </div>
      </div>
    </Modal>
  );
}

/** The spec as it is asked for now, whole. */
export function SpecFacts({ deployment }: { deployment: DeploymentDetail }) {
  const { spec } = deployment;
  const env = Object.entries(spec.env);
  const secrets = Object.entries(spec.secrets);
  return (
    <dl className="facts">
      <dt>Model</dt>
      <dd>
        <Id value={`${spec.model.store}/${spec.model.path}`} />
      </dd>
      <dt>Digest</dt>
      <dd>
        <Id value={spec.model.digest} shown={shortDigest(spec.model.digest)} />
      </dd>
      <dt>Runtime</dt>
      <dd>{spec.runtime === "onnx" ? "ONNX Runtime" : spec.runtime}</dd>
      <dt>A replica</dt>
      <dd className="num">
        {spec.resources.cpus} {spec.resources.cpus === 1 ? "core" : "cores"},{" "}
        {Math.round(spec.resources.memoryBytes / 1024 ** 2)} MiB
      </dd>
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
    </dl>
  );
}
