// The feature's command kinds. Apply and remove say what is wanted; the others look, read and ask.
import {
  ConnectorError,
  deploymentApply,
  deploymentLogs,
  deploymentRemove,
  deploymentRequest,
  deploymentStatus,
  type DeploymentId,
  type LogRecord,
} from "@sallyport/protocol";
import { defineKind, type AnyCommandKind } from "../../commands/command.ts";
import { checkSpec } from "./check.ts";
import { unknownDeployment, type Deployment } from "./deployment.ts";
import type { DeploymentsInside } from "./deployments.ts";
import type { Deps } from "./deps.ts";
import { applied, nameTaken, type Apply } from "./desired.ts";
import { orAborted } from "./insist.ts";

export function deploymentKinds(deps: Deps, inside: DeploymentsInside): AnyCommandKind[] {
  const must = (id: DeploymentId): Deployment => {
    const one = inside.find(id);
    if (one === null) throw unknownDeployment(id);
    return one;
  };
  /** What a name or a generation says without any disk. */
  const checkPlace = (input: Apply): void => {
    const other = inside.named(input.name);
    if (other !== null && other.id !== input.deployment) throw nameTaken(input.name, other.id);
    applied(inside.find(input.deployment)?.record ?? null, inside.removed(input.deployment), input);
  };

  const apply = defineKind({
    spec: deploymentApply,
    slot: false,
    check(input, policy) {
      const held = inside.find(input.deployment) === null ? 0 : 1;
      checkSpec(input.name, input.spec, deps, policy, { replicas: input.spec.replicas, others: inside.count() - held });
      checkPlace(input);
    },
    async run(input) {
      await inside.started;
      checkPlace(input);
      await inside.apply(input);
      return { result: { deployment: input.deployment, generation: input.generation } };
    },
  });

  const remove = defineKind({
    spec: deploymentRemove,
    slot: false,
    check(input) {
      staleRemoval(inside.find(input.deployment), input.generation);
    },
    async run(input, context) {
      await inside.started;
      staleRemoval(inside.find(input.deployment), input.generation);
      const stopped = await orAborted(context.signal, inside.remove(input.deployment, input.generation));
      return { result: { deployment: input.deployment, stopped } };
    },
  });

  const status = defineKind({
    spec: deploymentStatus,
    async run(input) {
      return { result: must(input.deployment).status() };
    },
  });

  const logs = defineKind({
    spec: deploymentLogs,
    check(input, policy) {
      policy.require({ kind: "release", what: "logs" });
      if (input.tail !== undefined && input.after !== 0)
        throw new ConnectorError("INPUT_INVALID", "after and tail exclude each other.", { fix: "Give one of them." });
    },
    async run(input, context) {
      context.policy.require({ kind: "release", what: "logs" });
      const one = must(input.deployment);
      const record = one.replicaRecord(input.replica);
      const start = input.start ?? record?.starts ?? 0;
      if (record === null || start < 1 || start > record.starts)
        throw new ConnectorError(
          "LOGS_GONE",
          record === null
            ? `Deployment ${one.record.name} has no replica ${input.replica}.`
            : `Replica ${input.replica} of deployment ${one.record.name} has not been started ${start < 1 ? "yet" : `${start} times`}.`,
          { fix: "Its status says which replicas there are and how often each was started." },
        );
      const address = { run: one.id, step: input.replica, attempt: start };
      /** Nothing more will be written. */
      const over = (): boolean => {
        const now = one.replicaRecord(input.replica);
        return now === null || now.starts > start || now.lastExit?.start === start || !now.seat;
      };
      const state = await deps.logs.status(address);
      if (state === null && over())
        throw new ConnectorError("LOGS_GONE", `The log of start ${start} of replica ${input.replica} was collected.`, {
          fix: "The newest ten starts of a replica are kept; whoever runs the agent can raise limits.logBytes.",
        });
      const records: AsyncIterable<LogRecord> = deps.logs.read({
        ...address,
        after: input.after,
        limit: input.limit,
        follow: input.follow,
        signal: context.signal,
        over,
        ...(input.tail === undefined ? {} : { tail: input.tail }),
      });
      return {
        result: {
          deployment: input.deployment,
          replica: input.replica,
          start,
          lastSeq: state?.lastSeq ?? 0,
          ended: state?.ended ?? over(),
        },
        records,
      };
    },
  });

  const request = defineKind({
    spec: deploymentRequest,
    check(input, policy) {
      policy.require({ kind: "predict", deployment: must(input.deployment).record.name });
      if (input.method === "GET" && input.body !== undefined)
        throw new ConnectorError("INPUT_INVALID", "A GET has no body.", { fix: "Leave body out, or use POST." });
    },
    async run(input, context) {
      const { name, removing } = must(input.deployment).record;
      context.policy.require({ kind: "predict", deployment: name });
      if (removing !== null) throw unknownDeployment(input.deployment);
      const answer = await deps.router.request(input.deployment, {
        method: input.method,
        path: input.path,
        headers: input.body === undefined ? {} : { "content-type": "application/json" },
        body: input.body === undefined ? null : Buffer.from(input.body),
        timeoutMs: input.timeoutMs,
        signal: context.signal,
      });
      const { status: code, mediaType, replica, tookMs } = answer;
      return {
        result: { status: code, mediaType, replica: replica as `r${number}.${number}`, tookMs },
        content: answer.body,
      };
    },
  });

  return [apply, remove, status, logs, request];
}

function staleRemoval(held: Deployment | null, generation: number): void {
  if (held === null || generation >= held.record.generation) return;
  const { name, generation: newest } = held.record;
  throw new ConnectorError(
    "GENERATION_STALE",
    `The agent holds generation ${newest} of deployment ${name}; its removal was asked for at ${generation}.`,
    { fix: "Ask for its removal again, now that it is newer.", details: { held: newest, generation } },
  );
}
