// A deployment's status as the control plane and the agent's own tools are told it, from its record and its seats.
import type { Condition, DeploymentStatus, ReplicaStatus } from "@sallyport/protocol";
import { conditionsOf, withSince } from "./conditions.ts";
import type { Deps } from "./deps.ts";
import type { DesiredRecord, ReplicaRecord } from "./desired.ts";
import type { Problem } from "./exit.ts";
import type { Replica } from "./replica.ts";
import type { Room } from "./room.ts";

export interface StatusInput {
  deps: Deps;
  room: Room;
  record: DesiredRecord;
  seats: readonly Replica[];
  /** Those that wait for room, and what is known of earlier starts of that name. */
  short: readonly { name: string; revision: number; number: number; record: ReplicaRecord | null }[];
  shortSince: number;
  /** As they were said last. */
  conditions: readonly Condition[];
}

export function statusOf({
  deps,
  room,
  record,
  seats,
  short,
  shortSince,
  conditions: before,
}: StatusInput): DeploymentStatus {
  const { deployment, name, generation, revision, spec, removing, held } = record;
  const wanted = removing === null ? spec.replicas : 0;
  const noRoom = noRoomFor(record, short, room);
  const { state, conditions } = conditionsOf({
    wanted,
    revision,
    held,
    noRoom,
    removing: removing !== null,
    endpoint: deps.router.problem,
    engine: seats.map((one) => one.engineProblem).find((one) => one !== null) ?? null,
    replicas: seats.map((one) => ({
      revision: one.record.revision,
      serves: one.phase === "ready" && one.routed,
      problem: one.phase === "draining" || one.phase === "stopping" ? null : one.problem,
    })),
  });
  const waiting = short.map((one): ReplicaStatus => ({
    name: one.name,
    revision: one.revision,
    number: one.number,
    state: "waiting",
    code: "AT_CAPACITY",
    message: noRoom?.message ?? null,
    since: shortSince,
    startedAt: null,
    starts: one.record?.starts ?? 0,
    adopted: false,
    lastExit: one.record?.lastExit ?? null,
  }));
  return {
    deployment,
    name,
    generation,
    revision,
    state,
    conditions: withSince(conditions, before, deps.clock.now()),
    replicasWanted: wanted,
    replicasReady: seats.filter((one) => one.phase === "ready").length,
    replicas: [...seats.map((one) => one.status()), ...waiting].toSorted(
      (a, b) => a.revision - b.revision || a.number - b.number,
    ),
    engine: spec.engine,
    isolated: deps.engines.names.includes(spec.engine) && deps.engines.get(spec.engine).isolated,
    endpoint: deps.router.endpoint(name),
    rollup: deps.router.rollup(deployment),
  };
}

function noRoomFor({ spec }: DesiredRecord, short: StatusInput["short"], room: Room): Problem | null {
  if (short.length === 0) return null;
  const why = room.shortOf(spec.resources);
  return {
    code: "AT_CAPACITY",
    message:
      why === null
        ? "There is no room for another replica: others wait longer."
        : `There is no room for another replica: ${why.limit} is ${why.most}, and too little of it is left for ${why.wanted} more.`,
    fix: "Scale this or another deployment down, or let whoever runs the agent raise the limit. It goes on by itself. A change needs room for one replica more than there are.",
    details: {
      waiting: short.map((one) => one.name),
      ...(why === null ? {} : { limit: why.limit, most: why.most }),
    },
    soft: false,
  };
}
