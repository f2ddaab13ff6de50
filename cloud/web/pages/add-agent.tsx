// Adding an agent: one field, one command to copy, and a panel that turns green by itself when the agent has joined.
import { Button, Loader, TextInput } from "@mantine/core";
import { IconAlertTriangle, IconArrowRight, IconCircleCheckFilled, IconCircleXFilled } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { api } from "../api/client.ts";
import { agentsQuery, enrollmentQuery, poolsQuery } from "../api/queries.ts";
import type { MadeEnrollment } from "../api/types.ts";
import { CopyLine } from "../parts/copy.tsx";
import { formatClock, formatDuration } from "../parts/format.ts";
import { Note, ProblemNote } from "../parts/notes.tsx";
import { PageHead, Tabs } from "../parts/page.tsx";
import { Ago, useNow } from "../parts/time.tsx";

/** After this much silence the panel names likely causes. */
const HINT_AFTER_MS = 60_000;
const NAME = /^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$/;

export function AddAgent() {
  const search = useSearch({ from: "/frame/agents/new" });
  const pools = useQuery(poolsQuery);
  const [pool, setPool] = useState(search.pool ?? "");
  const [name, setName] = useState("");
  const make = useMutation({
    mutationFn: () =>
      api.post<MadeEnrollment>("/v1/enrollments", {
        pool: pool.trim(),
        ...(name.trim() === "" ? {} : { name: name.trim() }),
      }),
  });
  const known = (pools.data ?? []).some((each) => each.name === pool.trim());
  const wrong = (value: string) =>
    value !== "" && !NAME.test(value)
      ? "Lower case letters, digits, '.', '_' and '-'; it begins and ends with a letter or digit"
      : null;
  return (
    <>
      <PageHead
        title="Add agent"
        crumbs={
          <Link to="/agents" className="crumb">
            Agents
          </Link>
        }
      />
      <div className="body">
        <div style={{ maxWidth: 720 }} className="stack">
          {!make.data ? (
            <form
              className="card"
              onSubmit={(event) => {
                event.preventDefault();
                if (pool.trim() !== "" && !wrong(pool.trim()) && !wrong(name.trim())) make.mutate();
              }}
            >
              <div className="card-head">
                <h2>Which pool does it join?</h2>
              </div>
              <div className="card-body stack" style={{ gap: 14 }}>
                <div className="dim">
                  Commands, stores and runs are addressed to a pool. One agent makes a pool; more of them share its
                  work.
                </div>
                <TextInput
                  size="sm"
                  label="Pool"
                  placeholder="prod"
                  value={pool}
                  onChange={(event) => setPool(event.currentTarget.value)}
                  error={wrong(pool.trim())}
                  description={
                    pool.trim() === "" || wrong(pool.trim())
                      ? "An existing pool, or a new name"
                      : known
                        ? "Joins this existing pool"
                        : "Makes this pool"
                  }
                  autoFocus
                  data-autofocus
                />
                {(pools.data ?? []).length > 0 && (
                  <div className="chips" role="group" aria-label="Existing pools" style={{ marginTop: -6 }}>
                    {pools.data!.slice(0, 8).map((each) => (
                      <button
                        key={each.id}
                        type="button"
                        className="chip"
                        style={{ borderColor: "var(--line-strong)" }}
                        aria-pressed={pool === each.name}
                        onClick={() => setPool(each.name)}
                      >
                        {each.name}
                      </button>
                    ))}
                  </div>
                )}
                <TextInput
                  size="sm"
                  label="Name of the agent"
                  placeholder={pool.trim() === "" || wrong(pool.trim()) ? "prod-1" : `${pool.trim()}-1`}
                  description="Optional; without one it takes the name of its machine"
                  value={name}
                  onChange={(event) => setName(event.currentTarget.value)}
                  error={wrong(name.trim())}
                />
                {make.error && <ProblemNote error={make.error} />}
                <div>
                  <Button
                    type="submit"
                    size="sm"
                    loading={make.isPending}
                    disabled={pool.trim() === "" || wrong(pool.trim()) !== null || wrong(name.trim()) !== null}
                  >
                    Make the command
                  </Button>
                </div>
              </div>
            </form>
          ) : (
            <Made made={make.data} onAgain={() => make.reset()} />
          )}
        </div>
      </div>
    </>
  );
}

function Made({ made, onAgain }: { made: MadeEnrollment; onAgain: () => void }) {
  const [tab, setTab] = useState("0");
  const enrollment = useQuery({ ...enrollmentQuery(made.id), initialData: made });
  const agents = useQuery({ ...agentsQuery, refetchInterval: 2_000 });
  const now = useNow();
  const state = enrollment.data.state;
  const agent = agents.data?.find((each) => each.id === enrollment.data.agent);
  const joined = state === "used";
  const up = agent?.state === "connected";
  const silentMs = now - made.createdAt;
  const command = made.commands[Number(tab)] ?? made.commands[0];
  const last = enrollment.data.refusals[0];
  return (
    <>
      <section className="card">
        <div className="card-head" style={made.commands.length > 1 ? { borderBottom: 0 } : undefined}>
          <h2>Run this where your data is</h2>
          {state === "waiting" && (
            <span
              className="tag accent"
              title={`Its secret works for one join and expires in ${formatDuration(made.expiresAt - now)}`}
            >
              works once, until {formatClock(made.expiresAt)}
            </span>
          )}
          {joined && <span className="tag">used; the secret is worth nothing now</span>}
        </div>
        {made.commands.length > 1 && (
          <Tabs
            label="How to start it"
            tabs={made.commands.map((each, n) => ({ value: String(n), word: each.title }))}
            value={tab}
            onChange={setTab}
          />
        )}
        <div className="card-body stack">
          {command?.note && (
            <div className="note warn">
              <div className="note-body">{command.note}</div>
            </div>
          )}
          {command && <CopyLine text={command.text} />}
          <div className="dim small">
            The agent dials <span className="mono">{made.url}</span> and proves that it talks to this very control plane
            by the fingerprint in the secret. The secret is shown only here. No port is opened on its side.
          </div>
        </div>
      </section>

      {up && agent ? (
        <section className="note ok" style={{ padding: "16px 18px" }} role="status" data-joined>
          <IconCircleCheckFilled size={20} aria-hidden />
          <div className="note-body">
            <b style={{ fontSize: 14 }}>{agent.name} is connected</b>
            <div className="fix">
              In pool {agent.pool.name}
              {agent.remoteAddress && <>, from {agent.remoteAddress}</>}
              {agent.version && <>, version {agent.version}</>}
              {agent.status && (
                <>, with {agent.status.stores.length === 1 ? "1 store" : `${agent.status.stores.length} stores`}</>
              )}
              . Key fingerprint <span className="mono">{agent.fingerprint.slice(0, 16)}</span>.
            </div>
            <div className="row" style={{ marginTop: 12 }}>
              {agent.status?.stores[0] && (
                <Button
                  rightSection={<IconArrowRight size={14} />}
                  renderRoot={(props) => (
                    <Link
                      to="/artifacts/$pool/$store"
                      params={{ pool: agent.pool.name, store: agent.status!.stores[0]!.id }}
                      {...props}
                    />
                  )}
                >
                  Browse {agent.status.stores[0].id}
                </Button>
              )}
              <Button
                variant="default"
                renderRoot={(props) => <Link to="/agents/$id" params={{ id: agent.id }} {...props} />}
              >
                Show the agent
              </Button>
              <Button variant="default" onClick={onAgain}>
                Add another
              </Button>
            </div>
          </div>
        </section>
      ) : state === "expired" || state === "withdrawn" ? (
        <Note
          tone="warn"
          icon={IconAlertTriangle}
          title={`This secret ${state === "expired" ? "has expired" : "was withdrawn"}.`}
        >
          <Button mt={8} onClick={onAgain}>
            Make a new one
          </Button>
        </Note>
      ) : (
        <section className="card">
          <div className="card-body row" style={{ gap: 12, alignItems: "flex-start" }} role="status">
            <Loader size={18} mt={1} />
            <div className="grow">
              <div style={{ fontWeight: 600 }}>
                {joined ? "Joined. Waiting for its first session…" : "Waiting for the agent…"}
              </div>
              <div className="dim">
                {joined
                  ? "The key was accepted; the agent now opens its link."
                  : `This turns green by itself. ${silentMs < 3_000 ? "" : `Nothing came for ${formatDuration(silentMs)} so far.`}`}
              </div>
            </div>
          </div>
          {last && (
            <div className="card-body" style={{ borderTop: "1px solid var(--line)" }}>
              <div className="row" style={{ alignItems: "flex-start", gap: 12 }}>
                <IconCircleXFilled size={18} className="tone-bad" style={{ flex: "none", marginTop: 1 }} aria-hidden />
                <div>
                  <div style={{ fontWeight: 600 }}>A join was refused: {last.message}</div>
                  <div className="faint small">
                    <span className="mono">{last.code}</span>, <Ago at={last.at} />
                    {last.remoteAddress && <>, from {last.remoteAddress}</>}
                  </div>
                </div>
              </div>
            </div>
          )}
          {!joined && !last && silentMs > HINT_AFTER_MS && (
            <div className="card-body" style={{ borderTop: "1px solid var(--line)" }}>
              <div style={{ fontWeight: 600, marginBottom: 6 }}>Nothing came for a minute. The usual causes:</div>
              <ol style={{ margin: 0, paddingLeft: 18 }} className="dim">
                <li>
                  The agent's machine does not reach <span className="mono">{made.url}</span>: a firewall or a wrong
                  name. There, try{" "}
                  <span className="mono">curl -I {new URL("/healthz", made.url.replace(/^ws/, "http")).href}</span>.
                </li>
                <li>
                  It must go through a proxy: set <span className="mono">HTTPS_PROXY</span> for the agent.
                </li>
                <li>The command stopped with an error: its last lines say which, and what to do.</li>
              </ol>
            </div>
          )}
        </section>
      )}
    </>
  );
}
