// Everything that was asked of any agent: who, what, why it waits, how it ended.
import { ActionIcon, Button, Textarea } from "@mantine/core";
import { IconFilterOff, IconTerminal2, IconX } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useMemo, useState } from "react";
import { api } from "../api/client.ts";
import { commandQuery, useCommands } from "../api/queries.ts";
import type { Command } from "../api/types.ts";
import { Confirm } from "../parts/confirm.tsx";
import { Copy, Id } from "../parts/copy.tsx";
import { formatDuration, formatTime, plural } from "../parts/format.ts";
import { ListBar } from "../parts/list-bar.tsx";
import { Empty, ErrorNote, Note, ProblemNote, RowSkeletons, WaitingNote } from "../parts/notes.tsx";
import { PageHead, Split } from "../parts/page.tsx";
import { COMMAND_LOOKS, Status, commandLook } from "../parts/status.tsx";
import { DataTable, type Column } from "../parts/table.tsx";
import { Ago, Took } from "../parts/time.tsx";
import { toast } from "../shell/toasts.tsx";
import { JsonView } from "../viewers/json-view.tsx";

const state: Column<Command> = {
  key: "state",
  title: "State",
  width: "104px",
  render: (command) => <Status look={commandLook(command)} />,
};
const what: Column<Command> = {
  key: "what",
  title: "Command",
  width: "minmax(200px, 2fr)",
  render: (command) => (
    <div className="two">
      <div className="clip">
        <Link
          to="/commands"
          search={(old: Record<string, unknown>) => ({ ...old, id: command.id }) as never}
          className="main-link mono"
          style={{ fontSize: 12.5 }}
        >
          {command.kind}
        </Link>
      </div>
      <div className="clip" title={command.resource}>
        {command.waiting ? (
          <span className="tone-warn">{command.waiting.text}</span>
        ) : command.error ? (
          <span className="tone-bad">{command.error.message}</span>
        ) : (
          <span className="mono">{command.resource}</span>
        )}
      </div>
    </div>
  ),
};
const who: Column<Command> = {
  key: "who",
  title: "Who",
  width: "minmax(80px, 0.7fr)",
  wide: true,
  render: (command) => (
    <span className="dim">
      {command.actor.name} <span className="faint small">{command.actor.via}</span>
    </span>
  ),
};
const agent: Column<Command> = {
  key: "agent",
  title: "Agent",
  width: "minmax(90px, 0.8fr)",
  render: (command) => <span className="dim">{command.agent?.name ?? command.pool.name}</span>,
};
const took: Column<Command> = {
  key: "took",
  title: "Took",
  width: "76px",
  right: true,
  wide: true,
  render: (command) => (
    <span className="dim">{command.endedAt === null ? "–" : formatDuration(command.endedAt - command.createdAt)}</span>
  ),
};
const when: Column<Command> = {
  key: "when",
  title: "When",
  width: "82px",
  right: true,
  render: (command) => <Ago at={command.createdAt} className="dim" />,
};

export function Commands() {
  const search = useSearch({ from: "/frame/commands" });
  const navigate = useNavigate({ from: "/commands" });
  const commands = useCommands();
  const all = commands.items ?? [];
  const q = search.q?.toLowerCase() ?? "";
  const rows = useMemo(
    () =>
      (commands.items ?? []).filter(
        (command) =>
          (!search.state || command.state === search.state) &&
          (q === "" ||
            `${command.kind} ${command.resource} ${command.id} ${command.pool.name} ${command.agent?.name ?? ""} ${command.actor.name} ${command.error?.code ?? ""} ${command.waiting?.code ?? ""}`
              .toLowerCase()
              .includes(q)),
      ),
    [commands.items, search.state, q],
  );
  const set = (change: Record<string, string | undefined>, replace = true) =>
    void navigate({ search: (old) => ({ ...old, ...change }) as never, replace });
  const columns = search.id
    ? [state, { ...what, width: "minmax(120px, 1fr)" }, { ...when, wide: true }]
    : [state, what, who, agent, took, when];
  return (
    <>
      <PageHead
        title="Commands"
        after={
          <span className="faint small clip">
            Lasting work only. What is read or changed in stores is kept in the agent's audit log, not here.
          </span>
        }
      />
      <div className="body flush">
        {all.length > 0 && (
          <ListBar
            items={all}
            shown={rows.length}
            thing="command"
            filter="Filter by kind, resource, person, code"
            search={search}
            looks={COMMAND_LOOKS}
            onChange={set}
            after={commands.hasNextPage && " loaded"}
          />
        )}
        {commands.error && (
          <div style={{ padding: "12px var(--pad)" }}>
            <ProblemNote error={commands.error} onRetry={() => void commands.refetch()} />
          </div>
        )}
        <Split
          name="commands"
          initial={0.5}
          left={
            commands.isPending ? (
              <RowSkeletons height={48} />
            ) : all.length === 0 ? (
              !commands.error && (
                <Empty icon={IconTerminal2} title="No commands yet">
                  Lasting work that is asked of agents (runs, cancels) is listed here: who asked, what became of it, and
                  why if it waits. What is read or changed in stores is not stored by the control plane; the agent's own
                  audit log has it.
                </Empty>
              )
            ) : rows.length === 0 ? (
              <Empty
                icon={IconFilterOff}
                title="No command matches"
                action={
                  <Button variant="default" onClick={() => void navigate({ search: {} })}>
                    Clear the filter
                  </Button>
                }
              >
                None of the {all.length} {commands.hasNextPage ? "newest commands" : "commands"} has what the filter
                asks for.
              </Empty>
            ) : (
              <DataTable
                label="Commands"
                columns={columns}
                rows={rows}
                rowHeight={48}
                rowKey={(command) => command.id}
                selected={search.id}
                openOnMove={search.id !== undefined}
                onOpen={(command) => set({ id: command.id }, search.id !== undefined)}
                onEnd={
                  commands.hasNextPage && !commands.isFetchingNextPage ? () => void commands.fetchNextPage() : undefined
                }
              />
            )
          }
          right={search.id ? <Detail key={search.id} id={search.id} onClose={() => set({ id: undefined })} /> : null}
        />
      </div>
    </>
  );
}

function Detail({ id, onClose }: { id: string; onClose: () => void }) {
  const query = useQuery(commandQuery(id));
  const command = query.data;
  const client = useQueryClient();
  const [ask, setAsk] = useState(false);
  const [reason, setReason] = useState("");
  const name = command?.silence?.name ?? "its agent";
  return (
    <section style={{ display: "flex", flexDirection: "column", minHeight: 0, height: "100%" }} aria-label="Command">
      <div className="pv-head">
        <h2 className="mono clip grow" style={{ margin: 0, fontSize: 13, fontWeight: 650 }}>
          {command?.kind ?? "…"}
        </h2>
        {command && <Status look={commandLook(command)} pill />}
        <ActionIcon variant="transparent" aria-label="Close" onClick={onClose} data-escape>
          <IconX size={16} />
        </ActionIcon>
      </div>
      <div style={{ overflow: "auto", padding: 16, flex: 1 }} className="stack">
        {query.error && <ProblemNote error={query.error} onRetry={() => void query.refetch()} />}
        {command && (
          <>
            {command.waiting && <WaitingNote waiting={command.waiting} />}
            {command.silence && (
              <Note tone="warn" title={command.text}>
                {command.silence.settles}
              </Note>
            )}
            {command.error && <ErrorNote error={command.error} />}
            {!command.waiting && !command.silence && !command.error && (
              <p className="dim" style={{ margin: 0 }}>
                {command.text}
              </p>
            )}
            {command.silence?.canBeLost && (
              <div>
                <Button variant="default" color="red" onClick={() => setAsk(true)}>
                  Declare it lost…
                </Button>
              </div>
            )}
            <dl className="facts">
              <dt>Resource</dt>
              <dd>
                <Id value={command.resource} />
              </dd>
              {command.resource.startsWith("deployment:") && (
                <>
                  <dt>Deployment</dt>
                  <dd>
                    <Link
                      to="/deployments/$id"
                      params={{ id: command.resource.slice("deployment:".length) }}
                      className="link mono"
                    >
                      {command.resource.slice("deployment:".length)}
                    </Link>
                  </dd>
                </>
              )}
              {command.run && (
                <>
                  <dt>Run</dt>
                  <dd>
                    <Link to="/runs/$id" params={{ id: command.run }} className="link mono">
                      {command.run}
                    </Link>
                  </dd>
                </>
              )}
              <dt>Asked by</dt>
              <dd>
                {command.actor.name}, <span className="faint">by {command.actor.via}</span>
              </dd>
              <dt>Pool</dt>
              <dd>{command.pool.name}</dd>
              <dt>Agent</dt>
              <dd>
                {command.agent ? (
                  <Link to="/agents/$id" params={{ id: command.agent.id }} className="link">
                    {command.agent.name}
                  </Link>
                ) : (
                  <span className="faint">none yet</span>
                )}
              </dd>
              <dt>Asked</dt>
              <dd className="num">{formatTime(command.createdAt)}</dd>
              <dt>Accepted</dt>
              <dd className="num">
                {command.acceptedAt === null ? (
                  <span className="faint">–</span>
                ) : (
                  <After from={command.createdAt} at={command.acceptedAt} />
                )}
              </dd>
              <dt>Began</dt>
              <dd className="num">
                {command.startedAt === null ? (
                  <span className="faint">–</span>
                ) : (
                  <After from={command.createdAt} at={command.startedAt} />
                )}
              </dd>
              <dt>Ended</dt>
              <dd className="num">
                {command.endedAt === null ? (
                  <span className="faint">–</span>
                ) : (
                  <After from={command.createdAt} at={command.endedAt} />
                )}
              </dd>
              {command.startedAt !== null && (
                <>
                  <dt>Duration</dt>
                  <dd>{command.unknown ? "unknown" : <Took from={command.startedAt} to={command.endedAt} />}</dd>
                </>
              )}
              {command.endedAt === null && (
                <>
                  <dt>Expires</dt>
                  <dd>
                    <Ago at={command.expiresAt} />
                  </dd>
                </>
              )}
              {command.priority !== 0 && (
                <>
                  <dt>Priority</dt>
                  <dd className="num">{command.priority}</dd>
                </>
              )}
              <dt>Offered</dt>
              <dd className="num">
                {command.offers === 0 ? <span className="faint">not yet</span> : plural(command.offers, "time")}
              </dd>
              <dt>Id</dt>
              <dd>
                <Id value={command.id} />
              </dd>
              <dt>Body digest</dt>
              <dd>
                <Id value={command.bodyDigest} />
              </dd>
            </dl>
            <section className="card" aria-label="What happened to it">
              <div className="card-head" style={{ minHeight: 36, padding: "6px 14px" }}>
                <h2>What happened to it</h2>
              </div>
              <ol style={{ listStyle: "none", margin: 0, padding: "8px 14px" }}>
                {command.history.map((event, n) => (
                  <li
                    key={n}
                    className={event.applied ? undefined : "faint"}
                    style={{ display: "flex", gap: 12, padding: "2px 0" }}
                  >
                    <time className="num faint nowrap" dateTime={new Date(event.at).toISOString()}>
                      {formatTime(event.at)}
                    </time>
                    <span style={{ overflowWrap: "anywhere", minWidth: 0 }}>{event.text}</span>
                  </li>
                ))}
              </ol>
            </section>
            {command.result !== null && command.result !== undefined && (
              <div className="card">
                <div className="card-head" style={{ minHeight: 36, padding: "6px 14px" }}>
                  <h2>Result</h2>
                  <span style={{ marginLeft: "auto" }}>
                    <Copy text={JSON.stringify(command.result, null, 2)} label="Copy the result" />
                  </span>
                </div>
                <JsonView value={command.result} />
              </div>
            )}
            {command.error?.details && Object.keys(command.error.details).length > 0 && (
              <div className="card">
                <div className="card-head" style={{ minHeight: 36, padding: "6px 14px" }}>
                  <h2>Details of the error</h2>
                </div>
                <JsonView value={command.error.details} />
              </div>
            )}
          </>
        )}
      </div>
      <Confirm
        opened={ask}
        onClose={() => setAsk(false)}
        title="Declare this command lost?"
        verb="Declare it lost"
        ready={reason.trim() !== ""}
        act={async () => {
          await api.post(`/v1/commands/${id}/lost`, { reason: reason.trim() });
          await Promise.all([
            client.invalidateQueries({ queryKey: ["commands"] }),
            client.invalidateQueries({ queryKey: ["runs"] }),
          ]);
          toast("The command is lost.");
        }}
      >
        <p style={{ margin: "0 0 8px" }}>
          It ends as <b>lost</b>, for good: you say that {name} will never answer for it. Nothing is stopped by that. If{" "}
          {name} still runs it, it goes on, and starting the same work again would do it twice.
        </p>
        <p style={{ margin: "0 0 12px" }}>
          When {name} comes back after all, what it says is kept beside this end and does not change it.
        </p>
        <Textarea
          label="Why it will never answer"
          description="Kept with the command."
          required
          autosize
          minRows={2}
          maxLength={1000}
          value={reason}
          onChange={(event) => setReason(event.currentTarget.value)}
        />
      </Confirm>
    </section>
  );
}

const After = ({ from, at }: { from: number; at: number }) => (
  <span title={formatTime(at)}>
    {formatDuration(at - from)} <span className="faint">later</span>
  </span>
);
