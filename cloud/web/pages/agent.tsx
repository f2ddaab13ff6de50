// One agent: what it says of itself, how it is connected, what it may do, and what can be done to it.
import { Button, Menu, Modal, TextInput, ActionIcon } from "@mantine/core";
import {
  IconAlertTriangle,
  IconBan,
  IconDots,
  IconPencil,
  IconRocket,
  IconShieldLock,
  IconTrash,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { Fragment, useState, type ReactNode } from "react";
import { LinkTab } from "../agents/link.tsx";
import { api } from "../api/client.ts";
import { agentQuery } from "../api/queries.ts";
import type { Agent } from "../api/types.ts";
import { Awaited } from "../parts/awaited.tsx";
import { Confirm } from "../parts/confirm.tsx";
import { Id } from "../parts/copy.tsx";
import { formatBytes, formatDuration, formatRate, formatTime, plural } from "../parts/format.ts";
import { Empty, Note, ProblemNote } from "../parts/notes.tsx";
import { PageHead, Tabs } from "../parts/page.tsx";
import { AgentStatus, DEPLOYMENT_LOOKS, Status, UNKNOWN_LOOK, lookOf } from "../parts/status.tsx";
import { Ago, useNow } from "../parts/time.tsx";
import { toast } from "../shell/toasts.tsx";
import { isHere } from "./agents.tsx";
import { whereOf } from "./stores.tsx";

export function AgentDetail() {
  const { id } = useParams({ from: "/frame/agents/$id" });
  const search = useSearch({ from: "/frame/agents/$id" });
  const navigate = useNavigate({ from: "/agents/$id" });
  const client = useQueryClient();
  const query = useQuery(agentQuery(id));
  const [ask, setAsk] = useState<"rename" | "revoke" | "delete" | null>(null);
  const agent = query.data;
  const crumbs = (
    <Link to="/agents" className="crumb">
      Agents
    </Link>
  );
  if (!agent) return <Awaited thing="Agent" crumbs={crumbs} query={query} heights={[200]} />;
  const changed = () => client.invalidateQueries({ queryKey: ["agents"] });
  const tab = search.tab ?? "overview";
  const gone = agent.state === "revoked";
  return (
    <>
      <PageHead
        title={agent.name}
        crumbs={crumbs}
        after={<AgentStatus agent={agent} pill />}
        actions={
          <Menu>
            <Menu.Target>
              <ActionIcon variant="default" aria-label="What can be done to this agent">
                <IconDots size={16} />
              </ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Item leftSection={<IconPencil size={15} />} onClick={() => setAsk("rename")}>
                Rename
              </Menu.Item>
              <Menu.Divider />
              <Menu.Item
                color="red"
                leftSection={<IconBan size={15} />}
                disabled={gone}
                onClick={() => setAsk("revoke")}
              >
                Revoke
              </Menu.Item>
              <Menu.Item color="red" leftSection={<IconTrash size={15} />} onClick={() => setAsk("delete")}>
                Delete
              </Menu.Item>
            </Menu.Dropdown>
          </Menu>
        }
      />
      <Tabs
        label="About this agent"
        value={tab}
        onChange={(next) => void navigate({ search: next === "overview" ? {} : { tab: next }, replace: true })}
        tabs={[
          { value: "overview", word: "Overview" },
          { value: "link", word: "Connection" },
          {
            value: "stores",
            word: <>Stores {agent.status && <span className="tag num">{agent.status.stores.length}</span>}</>,
          },
          {
            value: "deployments",
            word: (
              <>
                Deployments{" "}
                {agent.status && agent.status.deployments.length > 0 && (
                  <span className="tag num">{agent.status.deployments.length}</span>
                )}
              </>
            ),
          },
          { value: "policy", word: "Policy and programs" },
          {
            value: "alarms",
            word: <>Alarms {agent.alarms.length > 0 && <span className="tag bad num">{agent.alarms.length}</span>}</>,
          },
        ]}
      />
      <div className="body">
        <div className="stack" style={{ maxWidth: 1080, gap: 16 }}>
          {!isHere(agent) && (
            <Note tone={gone ? "bad" : "warn"} icon={gone ? IconBan : IconAlertTriangle} title={agent.stateReason}>
              {agent.statusAt !== null ? (
                <>
                  What it said last, <Ago at={agent.statusAt} />, is shown below; whether it still holds is not known.
                </>
              ) : (
                "It has not said anything of itself yet."
              )}
            </Note>
          )}
          {isHere(agent) && agent.state !== "connected" && (
            <Note tone="warn" title={agent.stateReason}>
              {agent.status?.paused?.until != null && <>Until {formatTime(agent.status.paused.until)}.</>}
            </Note>
          )}
          {tab === "link" ? (
            <LinkTab agent={agent} />
          ) : tab === "stores" ? (
            <StoresTab agent={agent} />
          ) : tab === "deployments" ? (
            <DeploymentsTab agent={agent} />
          ) : tab === "policy" ? (
            <PolicyTab agent={agent} />
          ) : tab === "alarms" ? (
            <AlarmsTab agent={agent} />
          ) : (
            <Overview agent={agent} />
          )}
        </div>
      </div>
      {ask === "rename" && <Rename agent={agent} onClose={() => setAsk(null)} />}
      <Confirm
        opened={ask === "revoke"}
        onClose={() => setAsk(null)}
        title={`Revoke ${agent.name}?`}
        verb={`Revoke ${agent.name}`}
        act={async () => {
          await api.post(`/v1/agents/${agent.id}/revoke`);
          await changed();
          toast(`${agent.name} was revoked.`);
        }}
      >
        Its key stops working and its link is cut within seconds. Work that runs there goes on, but nobody hears of it
        any more. To come back it must be enrolled again with a new secret.
      </Confirm>
      <Confirm
        opened={ask === "delete"}
        onClose={() => setAsk(null)}
        title={`Delete ${agent.name}?`}
        verb={`Delete ${agent.name}`}
        act={async () => {
          await api.delete(`/v1/agents/${agent.id}`);
          await changed();
          toast(`${agent.name} was deleted.`);
          await navigate({ to: "/agents" });
        }}
      >
        The record of this agent goes away and its key with it. Runs and commands that it did are kept. Nothing is
        removed on its own machine.
      </Confirm>
    </>
  );
}

function Card({ title, children, aside }: { title: string; children: ReactNode; aside?: ReactNode }) {
  return (
    <section className="card">
      <div className="card-head">
        <h2>{title}</h2>
        {aside && <span style={{ marginLeft: "auto" }}>{aside}</span>}
      </div>
      <div className="card-body">{children}</div>
    </section>
  );
}

function Overview({ agent }: { agent: Agent }) {
  const now = useNow();
  const here = isHere(agent);
  const status = agent.status;
  const labels = Object.entries(status?.labels ?? {});
  const host = status?.host;
  const share = (used: number, total: number) => (
    <div className="bar" style={{ width: 140, marginTop: 5 }} aria-hidden>
      <i
        style={{
          width: `${Math.round((used / Math.max(1, total)) * 100)}%`,
          background: used / total > 0.9 ? "var(--bad-bar)" : undefined,
        }}
      />
    </div>
  );
  const age = agent.statusAt !== null && (
    <span className="faint small">
      said <Ago at={agent.statusAt} />
    </span>
  );
  return (
    <>
      <div className="two-cols">
        <Card title="Connection">
          <dl className="facts">
            <dt>Last seen</dt>
            <dd>
              <Ago at={agent.lastSeenAt} none="not yet" />
            </dd>
            <dt>Connected</dt>
            <dd>
              {here && agent.connectedAt !== null ? (
                <span className="num" title={formatTime(agent.connectedAt)}>
                  for {formatDuration(now - agent.connectedAt)}
                </span>
              ) : (
                <span className="faint">no</span>
              )}
            </dd>
            <dt>From</dt>
            <dd className="mono">{agent.remoteAddress ?? "–"}</dd>
            <dt>Round trip</dt>
            <dd className="num">
              {here && agent.rttMs !== null ? `${agent.rttMs.toFixed(1)} ms` : "–"}
              {agent.link?.roundTrip && <span className="dim">, p95 {agent.link.roundTrip.p95Ms.toFixed(1)} ms</span>}
            </dd>
            <dt>History</dt>
            <dd>
              <Link to="/agents/$id" params={{ id: agent.id }} search={{ tab: "link" }} className="link">
                connected {plural(agent.sessions, "time")}
              </Link>
            </dd>
          </dl>
        </Card>
        <Card title="Identity">
          <dl className="facts">
            <dt>Pool</dt>
            <dd>{agent.pool.name}</dd>
            <dt>Id</dt>
            <dd>
              <Id value={agent.id} />
            </dd>
            <dt>Key</dt>
            <dd>
              <Id value={agent.fingerprint} />
            </dd>
            <dt>Version</dt>
            <dd className="num">{agent.version ?? "–"}</dd>
            <dt>Joined</dt>
            <dd title={formatTime(agent.createdAt)}>{formatTime(agent.createdAt)}</dd>
            {labels.length > 0 && (
              <>
                <dt>Labels</dt>
                <dd className="row wrap" style={{ gap: 4 }}>
                  {labels.map(([key, value]) => (
                    <span key={key} className="tag">
                      {key}={value}
                    </span>
                  ))}
                </dd>
              </>
            )}
          </dl>
        </Card>
        <Card title="Host" aside={age}>
          {host ? (
            <dl className="facts">
              <dt>Name</dt>
              <dd>
                {host.hostname} <span className="faint">{host.platform}</span>
              </dd>
              <dt>CPU</dt>
              <dd className="num">
                {host.cpus} cores
                {host.cpuLoad !== null && (
                  <span className="dim">, {here ? `${Math.round(host.cpuLoad * 100)}% busy` : "load unknown"}</span>
                )}
              </dd>
              <dt>Memory</dt>
              <dd className="num">
                {formatBytes(host.memoryTotalBytes - host.memoryFreeBytes)}{" "}
                <span className="dim">of {formatBytes(host.memoryTotalBytes)}</span>
                {share(host.memoryTotalBytes - host.memoryFreeBytes, host.memoryTotalBytes)}
              </dd>
              {host.diskTotalBytes !== null && host.diskFreeBytes !== null && (
                <>
                  <dt>Disk</dt>
                  <dd className="num">
                    {formatBytes(host.diskTotalBytes - host.diskFreeBytes)}{" "}
                    <span className="dim">of {formatBytes(host.diskTotalBytes)}</span>
                    {share(host.diskTotalBytes - host.diskFreeBytes, host.diskTotalBytes)}
                  </dd>
                </>
              )}
            </dl>
          ) : (
            <span className="dim">Not known yet.</span>
          )}
        </Card>
        <Card
          title="Running"
          aside={
            status && (
              <span className="faint small num">
                {here ? `${status.running.length} of ${status.limits.runs} runs` : "unknown"}
              </span>
            )
          }
        >
          {!status || !here ? (
            <span className="dim">
              {status ? "The agent is not connected; what runs there is not known until it answers." : "Not known yet."}
            </span>
          ) : status.running.length === 0 ? (
            <span className="dim">
              Nothing at the moment. Up to {status.limits.runs} runs and {status.limits.steps} steps at a time.
            </span>
          ) : (
            <ul className="list" style={{ margin: -14 }}>
              {status.running.map((each) => (
                <li key={each.command}>
                  <Link
                    {...(each.run
                      ? { to: "/runs/$id", params: { id: each.run } }
                      : { to: "/commands", search: { id: each.command } })}
                    className="list-row"
                  >
                    <span className="mono">{each.kind}</span>
                    <span className="mono faint clip">{each.run ?? each.command}</span>
                  </Link>
                </li>
              ))}
            </ul>
          )}
        </Card>
      </div>
    </>
  );
}

function StoresTab({ agent }: { agent: Agent }) {
  const stores = agent.status?.stores ?? [];
  if (stores.length === 0) {
    return (
      <Empty icon={IconShieldLock} title="No stores">
        {agent.status
          ? "Its configuration names no store. Stores are added in the agent's own file; their credentials stay there."
          : "The agent has not said yet which stores it has."}
      </Empty>
    );
  }
  return (
    <section className="card">
      <table className="plain-table">
        <thead>
          <tr>
            <th>Store</th>
            <th>Kind</th>
            <th>Where</th>
            <th>Its policy grants</th>
            <th />
          </tr>
        </thead>
        <tbody>
          {stores.map((store) => (
            <tr key={store.id}>
              <td style={{ fontWeight: 550 }}>{store.id}</td>
              <td className="dim">{store.kind}</td>
              <td className={store.kind === "fs" ? "dim" : "mono dim"}>{whereOf(store)}</td>
              <td>
                <span className="row" style={{ gap: 4 }}>
                  {store.grants.length === 0 ? (
                    <span className="faint">nothing</span>
                  ) : (
                    store.grants.map((grant) => (
                      <span key={grant} className={`tag${grant === "read" ? "" : " warn"}`}>
                        {grant}
                      </span>
                    ))
                  )}
                </span>
              </td>
              <td className="right">
                <Link to="/artifacts/$pool/$store" params={{ pool: agent.pool.name, store: store.id }} className="link">
                  Browse
                </Link>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

/** What it holds, as it said; and what it may hold at all. */
function DeploymentsTab({ agent }: { agent: Agent }) {
  const status = agent.status;
  if (!status)
    return (
      <Empty icon={IconRocket} title="Not known yet">
        The agent has not said anything of itself.
      </Empty>
    );
  const here = isHere(agent);
  const { ceilings } = status;
  return (
    <>
      {status.deployments.length === 0 ? (
        <section className="card">
          <Empty icon={IconRocket} title="It holds no deployments">
            {status.serving.length === 0 || ceilings.deployments === 0
              ? "It cannot hold any as it is configured: see below."
              : "A model that is deployed to its pool may come to it."}
          </Empty>
        </section>
      ) : (
        <section className="card scroll-x" tabIndex={0} aria-label="Deployments that it holds">
          <table className={`plain-table${here ? "" : " stale"}`}>
            <thead>
              <tr>
                <th>Deployment</th>
                <th>State</th>
                <th className="right">Replicas</th>
                <th className="right">Revision</th>
                <th>Engine</th>
                <th className="right">Req/s</th>
              </tr>
            </thead>
            <tbody>
              {status.deployments.map((each) => (
                <tr key={each.deployment}>
                  <td>
                    <Link to="/deployments/$id" params={{ id: each.deployment }} className="link">
                      {each.name}
                    </Link>
                  </td>
                  <td>
                    <span className="row" style={{ gap: 6 }}>
                      <Status look={here ? lookOf(DEPLOYMENT_LOOKS, each.state) : UNKNOWN_LOOK} />
                      {!here && (
                        <span className="faint small nowrap">
                          was {lookOf(DEPLOYMENT_LOOKS, each.state).word.toLowerCase()}
                        </span>
                      )}
                    </span>
                  </td>
                  <td className="right num nowrap">
                    {here ? each.replicasReady : "–"} / {each.replicasWanted}
                  </td>
                  <td className="right num">{each.revision}</td>
                  <td>{each.engine}</td>
                  <td className="right num">
                    {here && each.rollup ? formatRate(each.rollup.requests) : <span className="faint">–</span>}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      )}
      <div className="two-cols">
        <Card title="Engines that serve models">
          {status.serving.length === 0 ? (
            <span className="dim">
              None: its configuration names no way to serve models, or its policy allows no engine for it.
            </span>
          ) : (
            <dl className="facts">
              {status.serving.map((each) => (
                <Fragment key={each.engine}>
                  <dt>{each.engine}</dt>
                  <dd>
                    {each.isolated
                      ? "containers, apart from the host and within limits"
                      : "plain processes of the agent's user: nothing keeps them from its machine, limits are not enforced"}
                  </dd>
                </Fragment>
              ))}
            </dl>
          )}
        </Card>
        <Card title="Ceilings of its policy">
          {ceilings.deployments === 0 ? (
            <span className="dim">Its policy allows no deployments.</span>
          ) : (
            <dl className="facts">
              <dt>Deployments</dt>
              <dd className="num">
                {status.deployments.length} of {ceilings.deployments}
              </dd>
              <dt>Of one deployment</dt>
              <dd className="num">{plural(ceilings.replicas, "replica")}</dd>
              <dt>Of one replica</dt>
              <dd className="num">
                {plural(ceilings.cpus, "core")}, {Math.floor(ceilings.memoryBytes / 1024 ** 2).toLocaleString("en")} MiB
              </dd>
            </dl>
          )}
        </Card>
      </div>
    </>
  );
}

function PolicyTab({ agent }: { agent: Agent }) {
  const status = agent.status;
  if (!status)
    return (
      <Empty icon={IconShieldLock} title="Not known yet">
        The agent has not said anything of itself.
      </Empty>
    );
  return (
    <>
      <Note tone="run" icon={IconShieldLock} title="The policy is the customer's own file on the agent.">
        The control plane cannot read or change it; it sees its digest and what follows from it. A refused command names
        the rule.
      </Note>
      <Card title="Policy">
        <dl className="facts">
          <dt>Digest</dt>
          <dd>
            <Id value={status.policyDigest} />
          </dd>
          <dt>Allowed commands</dt>
          <dd className="row wrap" style={{ gap: 4 }}>
            {status.commands.length === 0 ? (
              <span className="faint">none</span>
            ) : (
              status.commands.map((kind) => (
                <span key={kind} className="tag mono">
                  {kind}
                </span>
              ))
            )}
          </dd>
          <dt>At a time</dt>
          <dd>
            {status.limits.runs} runs, {status.limits.steps} steps
          </dd>
        </dl>
      </Card>
      <Card title="Programs that steps may start">
        <div className="row wrap" style={{ gap: 4 }}>
          {status.programs.length === 0 ? (
            <span className="dim">None: pipelines have nothing to start here.</span>
          ) : (
            status.programs.map((name) => (
              <span key={name} className="tag mono">
                {name}
              </span>
            ))
          )}
        </div>
      </Card>
      <Card title="Engines">
        <div className="row wrap" style={{ gap: 4 }}>
          {status.engines.length === 0 ? (
            <span className="dim">None</span>
          ) : (
            status.engines.map((name) => (
              <span key={name} className="tag mono">
                {name}
              </span>
            ))
          )}
        </div>
      </Card>
    </>
  );
}

function AlarmsTab({ agent }: { agent: Agent }) {
  if (agent.alarms.length === 0) {
    return (
      <Empty icon={IconShieldLock} title="No alarms">
        A cloned identity or a wiped journal would be listed here.
      </Empty>
    );
  }
  return (
    <section className="card">
      <ul className="list">
        {agent.alarms.map((alarm) => (
          <li key={`${alarm.at} ${alarm.code}`} className="list-row" style={{ alignItems: "flex-start" }}>
            <IconAlertTriangle size={17} className="tone-bad" style={{ marginTop: 1, flex: "none" }} aria-hidden />
            <div className="grow">
              <div style={{ fontWeight: 550 }}>{alarm.message}</div>
              <div className="mono faint">{alarm.code}</div>
            </div>
            <Ago at={alarm.at} className="faint small nowrap" />
          </li>
        ))}
      </ul>
    </section>
  );
}

function Rename({ agent, onClose }: { agent: Agent; onClose: () => void }) {
  const client = useQueryClient();
  const [name, setName] = useState(agent.name);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const save = async () => {
    setBusy(true);
    setError(null);
    try {
      await api.patch(`/v1/agents/${agent.id}`, { name: name.trim() });
      await client.invalidateQueries({ queryKey: ["agents"] });
      onClose();
    } catch (caught) {
      setError(caught);
      setBusy(false);
    }
  };
  return (
    <Modal opened onClose={onClose} title={<b>Rename {agent.name}</b>} size={420}>
      <form
        className="stack"
        onSubmit={(event) => {
          event.preventDefault();
          void save();
        }}
      >
        <TextInput
          size="sm"
          label="Name"
          value={name}
          onChange={(event) => setName(event.currentTarget.value)}
          data-autofocus
        />
        {error !== null && <ProblemNote error={error} />}
        <div className="row" style={{ justifyContent: "flex-end" }}>
          <Button variant="default" onClick={onClose}>
            Keep as it is
          </Button>
          <Button type="submit" loading={busy} disabled={name.trim() === "" || name.trim() === agent.name}>
            Rename
          </Button>
        </div>
      </form>
    </Modal>
  );
}
