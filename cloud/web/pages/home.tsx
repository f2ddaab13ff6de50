// Home: what to do first, then what needs somebody, what ran lately, and the fleet.
import { Button, Skeleton } from "@mantine/core";
import {
  IconActivity,
  IconCircle,
  IconCircleCheckFilled,
  IconPlus,
  IconServer2,
  IconShieldCheck,
} from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { agentsQuery, deploymentsQuery, poolsQuery, useCommands, useRuns } from "../api/queries.ts";
import { Empty, ProblemNote } from "../parts/notes.tsx";
import { PageHead } from "../parts/page.tsx";
import { AGENT_LOOKS, DEPLOYMENT_LOOKS, RUN_LOOKS, Status, StatusIcon, lookOf } from "../parts/status.tsx";
import { shortId } from "../parts/format.ts";
import { Ago, Took } from "../parts/time.tsx";
import { hasLooked } from "../viewers/looked.ts";

export function Home() {
  const agents = useQuery(agentsQuery);
  const pools = useQuery(poolsQuery);
  const runs = useRuns();
  const commands = useCommands();
  const deployments = useQuery(deploymentsQuery);
  if (agents.isPending || runs.isPending || commands.isPending) {
    return (
      <>
        <PageHead title="Home" />
        <div className="body">
          <div className="stack" aria-busy="true">
            <Skeleton height={120} />
            <Skeleton height={180} />
          </div>
        </div>
      </>
    );
  }
  const error = agents.error ?? runs.error ?? commands.error ?? deployments.error;
  const fleet = (agents.data ?? []).filter((agent) => agent.state !== "revoked");
  const recent = runs.items ?? [];
  const sent = commands.items ?? [];
  const store = pools.data?.find((pool) => pool.stores.length > 0);

  // Ticks come from what happened, never from a click on this page.
  const connected = fleet.some((agent) => agent.connectedAt !== null || agent.state === "connected");
  const ran = recent.some((run) => run.state === "succeeded");
  const looked = hasLooked() || ran;
  const todo = [
    {
      done: connected,
      title: "Connect an agent",
      text: "It runs beside your data, dials out once, and needs no open port.",
      action: (
        <Button
          renderRoot={(props) => <Link to="/agents/new" {...props} />}
          leftSection={<IconPlus size={14} />}
          variant={connected ? "default" : "filled"}
        >
          Add agent
        </Button>
      ),
    },
    {
      done: looked,
      title: "Look at an artifact",
      text: "The agent reads it with credentials that never leave its network; only the preview does.",
      action: store ? (
        <Button
          variant={connected && !looked ? "filled" : "default"}
          renderRoot={(props) => (
            <Link to="/artifacts/$pool/$store" params={{ pool: store.name, store: store.stores[0]!.id }} {...props} />
          )}
        >
          Browse {store.stores[0]!.id}
        </Button>
      ) : null,
    },
    {
      done: ran,
      title: "Run a pipeline",
      text: "Steps run where the data is. You see their log lines as they are written.",
      action: (
        <Button
          variant={looked && !ran ? "filled" : "default"}
          renderRoot={(props) => <Link to="/runs/new" {...props} />}
          disabled={!connected}
        >
          Start a run
        </Button>
      ),
    },
  ];
  const serving = (pools.data ?? []).find((pool) => pool.serving.length > 0 && pool.ceilings.deployments > 0);
  const deployed = (deployments.data ?? []).length > 0;
  // Only where an agent can serve: a step that cannot be done is none.
  if (serving || deployed)
    todo.push({
      done: deployed,
      title: "Deploy a model",
      text: "Replicas run beside your data and answer at an endpoint in your own network.",
      action: (
        <Button
          variant={ran ? "filled" : "default"}
          renderRoot={(props) => (
            <Link to="/deployments/new" search={serving ? { pool: serving.name } : {}} {...props} />
          )}
        >
          Deploy a model
        </Button>
      ),
    });
  const open = todo.filter((each) => !each.done).length;

  const needs: { key: string; to: ReactNode }[] = [];
  for (const agent of fleet) {
    if (
      agent.state !== "lost" &&
      agent.state !== "disconnected" &&
      agent.state !== "paused" &&
      agent.alarms.length === 0
    )
      continue;
    const alarm = agent.alarms[0];
    needs.push({
      key: agent.id,
      to: (
        <Link to="/agents/$id" params={{ id: agent.id }} className="list-row">
          <StatusIcon look={lookOf(AGENT_LOOKS, agent.state)} />
          <span className="grow">
            <div style={{ fontWeight: 550 }}>
              Agent {agent.name}: {lookOf(AGENT_LOOKS, agent.state).word.toLowerCase()}
            </div>
            <div className="dim clip">{alarm ? alarm.message : agent.stateReason}</div>
          </span>
          <span className="faint small nowrap">
            seen <Ago at={agent.lastSeenAt} />
          </span>
        </Link>
      ),
    });
  }
  for (const deployment of deployments.data ?? []) {
    if (deployment.state !== "failed" && deployment.state !== "degraded" && deployment.state !== "refused") continue;
    needs.push({
      key: deployment.id,
      to: (
        <Link to="/deployments/$id" params={{ id: deployment.id }} className="list-row">
          <StatusIcon look={lookOf(DEPLOYMENT_LOOKS, deployment.state)} />
          <span className="grow">
            <div style={{ fontWeight: 550 }}>
              Deployment {deployment.name}: {lookOf(DEPLOYMENT_LOOKS, deployment.state).word.toLowerCase()}
            </div>
            <div className="dim clip">{deployment.stateReason}</div>
          </span>
          <span className="faint small nowrap">
            <Ago at={deployment.updatedAt} />
          </span>
        </Link>
      ),
    });
  }
  // The newest run of a pipeline speaks for it: an old failure that was mended since needs nobody.
  const newest = new Map<string, (typeof recent)[number]>();
  for (const run of recent) {
    const key = `${run.pool.name} ${run.pipeline}`;
    if (!newest.has(key) && (run.state === "succeeded" || run.state === "failed")) newest.set(key, run);
  }
  for (const run of newest.values()) {
    if (run.state !== "failed") continue;
    needs.push({
      key: run.id,
      to: (
        <Link to="/runs/$id" params={{ id: run.id }} className="list-row">
          <StatusIcon look={RUN_LOOKS.failed} />
          <span className="grow">
            <div style={{ fontWeight: 550 }}>Run of {run.pipeline} failed</div>
            <div className="dim clip">{run.error?.message ?? "No reason was reported."}</div>
          </span>
          <span className="faint small nowrap">
            <Ago at={run.endedAt ?? run.createdAt} />
          </span>
        </Link>
      ),
    });
  }
  for (const command of sent) {
    if (command.waiting === null || command.waiting.code === "OFFERED") continue;
    needs.push({
      key: command.id,
      to: (
        <Link to="/commands" search={{ id: command.id }} className="list-row">
          <StatusIcon look={RUN_LOOKS.queued} />
          <span className="grow">
            <div style={{ fontWeight: 550 }}>
              Waiting: <span className="mono">{command.kind}</span> for {command.pool.name}
            </div>
            <div className="dim clip">{command.waiting.text}</div>
          </span>
          <span className="faint small nowrap">
            <Ago at={command.createdAt} />
          </span>
        </Link>
      ),
    });
  }

  return (
    <>
      <PageHead
        title="Home"
        actions={
          open === 0 && (
            <Button
              variant="default"
              leftSection={<IconPlus size={14} />}
              renderRoot={(props) => <Link to="/agents/new" {...props} />}
            >
              Add agent
            </Button>
          )
        }
      />
      <div className="body">
        {error && (
          <div style={{ marginBottom: 16 }}>
            <ProblemNote error={error} />
          </div>
        )}
        {open > 0 && (
          <section className="card" style={{ marginBottom: 24 }}>
            <div className="card-head">
              <h2>First steps</h2>
              <span className="faint small num">
                {todo.length - open} of {todo.length} done
              </span>
            </div>
            <ol className="steps">
              {todo.map((each) => (
                <li key={each.title} className={each.done ? "done" : undefined}>
                  {each.done ? (
                    <IconCircleCheckFilled size={20} className="tone-ok" aria-label="Done" />
                  ) : (
                    <IconCircle size={20} stroke={1.6} className="tone-idle" aria-label="To do" />
                  )}
                  <div>
                    <div className="t">{each.title}</div>
                    <div className="d">{each.text}</div>
                  </div>
                  {!each.done && each.action}
                </li>
              ))}
            </ol>
          </section>
        )}

        <section style={{ marginBottom: 24 }}>
          <div className="section-head">
            <h2>Needs attention</h2>
            {needs.length > 0 && <span className="faint small num">{needs.length}</span>}
          </div>
          <div className="card">
            {needs.length === 0 ? (
              <div className="list-row dim" style={{ padding: "13px 14px" }}>
                <IconShieldCheck size={17} stroke={1.7} className="tone-ok" aria-hidden />
                {fleet.length === 0
                  ? "Nothing yet: problems with agents, runs, deployments and waiting commands will be listed here."
                  : "Nothing: every agent is connected, no pipeline and no deployment is failing, nothing waits."}
              </div>
            ) : (
              <ul className="list">
                {needs.slice(0, 8).map((need) => (
                  <li key={need.key}>{need.to}</li>
                ))}
              </ul>
            )}
            {needs.length > 8 && <div className="list-row faint small">and {needs.length - 8} more</div>}
          </div>
        </section>

        <div className="home-cols">
          <section>
            <div className="section-head">
              <h2>Recent runs</h2>
              <Link to="/runs" className="link more">
                All runs
              </Link>
            </div>
            <div className="card">
              {recent.length === 0 ? (
                <Empty icon={IconActivity} title="No runs yet">
                  The first pipeline that you start shows up here.
                </Empty>
              ) : (
                <ul className="list">
                  {recent.slice(0, 7).map((run) => (
                    <li key={run.id}>
                      <Link to="/runs/$id" params={{ id: run.id }} className="list-row">
                        <span className="row" style={{ width: 104, flex: "none" }}>
                          <Status look={lookOf(RUN_LOOKS, run.state)} />
                        </span>
                        <span className="grow clip">
                          <span style={{ fontWeight: 550 }}>{run.pipeline}</span>{" "}
                          <span className="mono faint">{shortId(run.id)}</span>
                        </span>
                        <span className="faint small nowrap num" style={{ width: 66, textAlign: "right" }}>
                          {run.state === "unknown" ? "–" : <Took from={run.startedAt} to={run.endedAt} />}
                        </span>
                        <span className="faint small nowrap num" style={{ width: 74, textAlign: "right" }}>
                          <Ago at={run.createdAt} />
                        </span>
                      </Link>
                    </li>
                  ))}
                </ul>
              )}
            </div>
          </section>
          <section>
            {(deployments.data ?? []).length > 0 && (
              <div style={{ marginBottom: 20 }}>
                <div className="section-head">
                  <h2>Deployments</h2>
                  <Link to="/deployments" className="link more">
                    All deployments
                  </Link>
                </div>
                <div className="card">
                  <ul className="list">
                    {(deployments.data ?? []).slice(0, 5).map((each) => (
                      <li key={each.id}>
                        <Link to="/deployments/$id" params={{ id: each.id }} className="list-row">
                          <StatusIcon look={lookOf(DEPLOYMENT_LOOKS, each.state)} />
                          <span className="grow clip">
                            <span style={{ fontWeight: 550 }}>{each.name}</span>{" "}
                            <span className="faint">{each.pool.name}</span>
                          </span>
                          <span className="small faint nowrap num">
                            {each.state === "available" || each.state === "degraded" || each.state === "progressing"
                              ? `${each.replicasReady ?? "–"} of ${each.spec.replicas} ready`
                              : lookOf(DEPLOYMENT_LOOKS, each.state).word.toLowerCase()}
                          </span>
                        </Link>
                      </li>
                    ))}
                  </ul>
                </div>
              </div>
            )}
            <div className="section-head">
              <h2>Fleet</h2>
              <Link to="/agents" className="link more">
                All agents
              </Link>
            </div>
            <div className="card">
              {fleet.length === 0 ? (
                <Empty
                  icon={IconServer2}
                  title="No agents yet"
                  action={
                    <Link to="/agents/new" className="link">
                      Add the first one
                    </Link>
                  }
                />
              ) : (
                <ul className="list">
                  {fleet.slice(0, 7).map((agent) => {
                    const here = agent.state === "connected" || agent.state === "paused" || agent.state === "draining";
                    return (
                      <li key={agent.id}>
                        <Link to="/agents/$id" params={{ id: agent.id }} className="list-row">
                          <StatusIcon look={lookOf(AGENT_LOOKS, agent.state)} />
                          <span className="grow clip">
                            <span style={{ fontWeight: 550 }}>{agent.name}</span>{" "}
                            <span className="faint">{agent.pool.name}</span>
                          </span>
                          <span className="small faint nowrap">
                            {here ? (
                              agent.status ? (
                                <span className="num">{agent.status.running.length} running</span>
                              ) : (
                                lookOf(AGENT_LOOKS, agent.state).word
                              )
                            ) : (
                              <>
                                {lookOf(AGENT_LOOKS, agent.state).word.toLowerCase()}, seen{" "}
                                <Ago at={agent.lastSeenAt} />
                              </>
                            )}
                          </span>
                        </Link>
                      </li>
                    );
                  })}
                </ul>
              )}
            </div>
          </section>
        </div>
      </div>
    </>
  );
}
