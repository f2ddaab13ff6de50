// Where artifacts are: every store of every pool, with what the policy grants there.
import { Button, Skeleton } from "@mantine/core";
import { IconBucket, IconFolder, IconFolders, IconPlus } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { poolsQuery } from "../api/queries.ts";
import { Empty, ProblemNote } from "../parts/notes.tsx";
import { PageHead } from "../parts/page.tsx";

/** A store of files is named without its path: the host's folders are nobody's business here. */
export const whereOf = (store: { kind: string; label: string }): string =>
  store.kind === "fs" ? "files on the agent's host" : store.label;

export function Stores() {
  const pools = useQuery(poolsQuery);
  const all = pools.data ?? [];
  const none = all.every((pool) => pool.stores.length === 0);
  return (
    <>
      <PageHead title="Artifacts" />
      <div className={none && !pools.isPending && !pools.error ? "body flush" : "body"}>
        {pools.error && <ProblemNote error={pools.error} onRetry={() => void pools.refetch()} />}
        {pools.isPending ? (
          <div className="cards" aria-busy="true">
            <Skeleton height={104} />
            <Skeleton height={104} />
          </div>
        ) : none && !pools.error ? (
          <Empty
            icon={IconFolders}
            title="No stores yet"
            action={
              <Button leftSection={<IconPlus size={14} />} renderRoot={(props) => <Link to="/agents/new" {...props} />}>
                Add agent
              </Button>
            }
          >
            {all.length === 0
              ? "Stores belong to agents. Connect one, and what it can read appears here."
              : "No agent has said that it has a store. Stores are named in the agent's own configuration file."}
          </Empty>
        ) : (
          all
            .filter((pool) => pool.stores.length > 0)
            .map((pool) => (
              <section key={pool.id} style={{ marginBottom: 26 }}>
                <div className="section-head">
                  <h2>{pool.name}</h2>
                  <span className="faint small num">
                    {pool.agents.connected} of {pool.agents.total} {pool.agents.total === 1 ? "agent" : "agents"}{" "}
                    connected
                  </span>
                  {pool.stale && <span className="tag warn">offline: as its agent last said</span>}
                </div>
                <div className="cards">
                  {pool.stores.map((store) => (
                    <Link
                      key={store.id}
                      to="/artifacts/$pool/$store"
                      params={{ pool: pool.name, store: store.id }}
                      className="card store-card"
                    >
                      <div className="row">
                        {store.kind === "s3" ? (
                          <IconBucket size={18} stroke={1.6} className="faint" aria-hidden />
                        ) : (
                          <IconFolder size={18} stroke={1.6} className="faint" aria-hidden />
                        )}
                        <span style={{ fontWeight: 600 }} className="clip">
                          {store.id}
                        </span>
                        <span className="tag" style={{ marginLeft: "auto" }}>
                          {store.kind}
                        </span>
                      </div>
                      <div className={`dim clip${store.kind === "fs" ? "" : " mono"}`} style={{ margin: "8px 0 10px" }}>
                        {whereOf(store)}
                      </div>
                      <div className="row" style={{ gap: 4 }}>
                        {store.grants.map((grant) => (
                          <span key={grant} className="tag">
                            {grant}
                          </span>
                        ))}
                        {store.grants.length === 0 && (
                          <span className="faint small">The policy grants nothing here</span>
                        )}
                      </div>
                    </Link>
                  ))}
                </div>
              </section>
            ))
        )}
      </div>
    </>
  );
}
