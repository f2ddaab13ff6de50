// What is said of a deployment, from what is wanted and what its replicas say of themselves. Pure.
import type { Condition, ConnectorError, DeploymentState } from "@sallyport/protocol";
import type { Problem } from "./exit.ts";

export interface ReplicaView {
  revision: number;
  /** Ready, and gets requests. */
  serves: boolean;
  problem: Problem | null;
}

export interface ConditionsInput {
  wanted: number;
  revision: number;
  replicas: readonly ReplicaView[];
  /** No replica can be begun for lack of room. */
  noRoom: Problem | null;
  held: { by: string } | null;
  removing: boolean;
  /** Of the router. */
  endpoint: ConnectorError | null;
  /** It does not answer; null when it does, or nothing of it is there to be asked about. */
  engine: Problem | null;
}

export type Said = Omit<Condition, "since">;

const ok = (type: Condition["type"], message: string): Said => ({ type, ok: true, code: "OK", message, fix: null });
const not = (type: Condition["type"], problem: Problem): Said => ({
  type,
  ok: false,
  code: problem.code,
  message: problem.message,
  fix: problem.fix,
  details: problem.details,
});
const soon = (message: string): Problem => ({
  code: "DEPLOYMENT_UNREADY",
  message,
  fix: null,
  details: {},
  soft: true,
});
const replicas = (n: number): string => (n === 1 ? "1 replica" : `${n} replicas`);

export function conditionsOf(input: ConditionsInput): { state: DeploymentState; conditions: Said[] } {
  const { wanted, revision, held, noRoom, removing, endpoint, engine } = input;
  const serving = input.replicas.filter((r) => r.serves).length;
  const updated = input.replicas.filter((r) => r.serves && r.revision === revision).length;
  const older = input.replicas.some((r) => r.revision !== revision);
  // Of the wanted revision first: that is what somebody waits for. What is hard before what is over in a moment.
  const problems = input.replicas
    .flatMap((r) => (r.problem === null ? [] : [{ problem: r.problem, revision: r.revision }]))
    .toSorted((a, b) => Number(a.problem.soft) - Number(b.problem.soft) || b.revision - a.revision);
  const stopped: Problem | null =
    held === null
      ? null
      : {
          code: "CANCELLED",
          message: `Stopped at the agent's host by ${held.by}.`,
          fix: "Apply the deployment again, or scale it, to start it.",
          details: {},
          soft: false,
        };
  const ofNew = stopped ?? problems.find((p) => p.revision === revision)?.problem ?? noRoom;
  const any = ofNew ?? problems[0]?.problem ?? null;
  const there = serving >= wanted && stopped === null;
  const current = updated >= wanted && !older && stopped === null;

  const conditions: Said[] = [
    there
      ? ok("available", wanted === 0 ? "No replica is wanted." : `${serving} of ${replicas(wanted)} ready.`)
      : not("available", any ?? soon(`${serving} of ${replicas(wanted)} ready.`)),
    current
      ? ok("updated", `All replicas are of revision ${revision}.`)
      : not("updated", ofNew ?? soon(`${updated} of ${replicas(wanted)} of revision ${revision} ready.`)),
    endpoint === null
      ? ok("endpoint", "The endpoint takes requests.")
      : not("endpoint", {
          code: endpoint.code,
          message: endpoint.message,
          fix: endpoint.fix ?? null,
          details: endpoint.details ?? {},
          soft: false,
        }),
    engine === null ? ok("engine", "The engine answers.") : not("engine", engine),
  ];
  const state = ((): DeploymentState => {
    if (removing) return "removing";
    if (stopped !== null) return "failed";
    if (there && current) return endpoint === null && engine === null && any === null ? "available" : "degraded";
    const trouble = current ? any : (ofNew ?? any);
    if (trouble === null) return "progressing";
    if (serving > 0) return "degraded";
    return trouble.soft ? "progressing" : "failed";
  })();
  return { state, conditions };
}

/** With the time of the last change of `ok` or `code`. */
export function withSince(said: readonly Said[], before: readonly Condition[], now: number): Condition[] {
  return said.map((one) => {
    const old = before.find((c) => c.type === one.type);
    return { ...one, since: old !== undefined && old.ok === one.ok && old.code === one.code ? old.since : now };
  });
}
