// From an empty seat to work that has begun: policy, model, secrets, image, folder, log, engine; in such an order that a
// kill at any point leaves a name in the journal before there is anything in the engine.
import { channel } from "node:diagnostics_channel";
import { copyFile, link } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, toConnectorError, type DeploymentSpec } from "@sallyport/protocol";
import { HOST_ENVIRONMENT } from "../../engines/environment.ts";
import type { Engine, WorkName, WorkSpec, WorkStatus } from "../../engines/engine.ts";
import { checkSpec, requireRuntime } from "./check.ts";
import type { Deps } from "./deps.ts";
import type { ReplicaRecord } from "./desired.ts";
import type { EndpointKeys } from "./keys.ts";
import type { Models } from "./models.ts";
import { MODEL, SOCKET, type Places } from "./places.ts";
import { ReplicaLog } from "./replica-log.ts";

/** Where tests kill the agent. */
export const boundary = {
  numbered: channel("sallyport:replica.numbered"),
  started: channel("sallyport:replica.started"),
  begun: channel("sallyport:replica.begun"),
  ended: channel("sallyport:replica.ended"),
};

/** The port that a runtime in a container listens on, in a network of its own. */
export const SERVING_PORT = 8080;

/** What all replicas share. */
export interface ReplicaParts {
  deps: Deps;
  models: Models;
  keys: EndpointKeys;
  places: Places;
}

export interface Seated {
  deployment: Parameters<typeof ReplicaLog.open>[1];
  /** Of the deployment. */
  deploymentName: string;
  /** `r3.0` */
  name: string;
  work: WorkName;
  spec: DeploymentSpec;
}

export interface LaunchInput extends ReplicaParts {
  seat: Seated;
  record: ReplicaRecord;
  /** Deployments beside this one. */
  others: number;
  /** Aborts: it is not wanted any more, or the agent stops. */
  signal: AbortSignal;
  /** Aborts when the agent stops: what has begun is followed until then. */
  life: AbortSignal;
  /** What it is doing, for people. */
  step(text: string): void;
  write(record: ReplicaRecord): Promise<void>;
}

export interface Launched {
  record: ReplicaRecord;
  status: WorkStatus;
  log: ReplicaLog;
}

/** Throws what is in the way; then nothing has begun. */
export async function launch(input: LaunchInput): Promise<Launched> {
  const { deps, models, keys, places, seat, signal, step } = input;
  const { spec, work, name } = seat;
  const check = (): void =>
    checkSpec(seat.deploymentName, spec, deps, deps.policy, {
      replicas: input.record.number + 1,
      others: input.others,
    });
  check();
  const engine = deps.engines.get(spec.engine);
  step("Its model is being fetched.");
  const model = await models.ensure(spec.model, signal);
  step("Its secrets are being resolved.");
  const secrets: Record<string, string> = {};
  for (const [variable, secret] of Object.entries(spec.secrets)) {
    const value = (await resolved(deps, secret, signal)).reveal();
    deps.redactor.add(value);
    secrets[variable] = value;
  }
  const runtime = requireRuntime(spec, engine.isolated, deps);
  step("Its image is being made present.");
  await engine.prepare(runtime.kind === "image" ? runtime.image : null, signal);
  // The name is free: what an earlier start left there was accounted for when it ended. Whoever runs under it all the same
  // was begun by an agent whose journal is lost, from a spec that nobody knows.
  if ((await engine.status(work)).state === "running") await engine.stop(work, deps.timings.graceMs);
  if ((await engine.status(work)).state === "exited") await engine.forget(work);
  const folder = await places.make(work);
  await link(model, join(folder, MODEL)).catch(() => copyFile(model, join(folder, MODEL)));
  // The fetch may have taken its time: the policy of now decides.
  check();
  signal.throwIfAborted();

  let start = input.record.starts + 1;
  const addressOf = (attempt: number) => ({ run: seat.deployment, step: name, attempt });
  // A log of that number from before records were lost: its number is taken.
  while ((await deps.logs.status(addressOf(start))) !== null) start++;
  const record: ReplicaRecord = {
    ...input.record,
    seat: true,
    starts: start,
    begun: false,
    startedAt: null,
    address: null,
  };
  await input.write(record);
  boundary.numbered.publish({ work, start });
  const log = await ReplicaLog.open(deps, seat.deployment, name, start);
  try {
    await log.say(`Start ${start} of replica ${name} begins.`);
    const token = await keys.token(work);
    step("It is being started.");
    const status = await startWork(
      engine,
      workSpec(seat, engine, runtime, folder, { ...secrets, SALLYPORT_SERVING_TOKEN: token }, log),
    );
    boundary.started.publish({ work, start });
    log.read([], input.life, async () => undefined);
    return { record, status, log };
  } catch (error) {
    // An engine that cannot say may have begun it all the same: then its files are still written to.
    if (error instanceof ConnectorError && error.code === "ENGINE_UNREACHABLE") await log.close();
    else {
      await log.say("It could not be started.");
      await log.finish();
    }
    throw error;
  }
}

/** Its provider's words name the reference; who deploys knows the secret by its name alone. */
async function resolved(deps: Deps, secret: string, signal: AbortSignal) {
  try {
    return await deps.secrets.named(secret, signal);
  } catch (caught) {
    signal.throwIfAborted();
    const { code, message, fix, details } = toConnectorError(caught);
    throw new ConnectorError(code, `The secret ${secret} cannot be had: ${message}`, {
      ...(fix === undefined ? {} : { fix }),
      ...(details === undefined ? {} : { details }),
      cause: caught,
    });
  }
}

async function startWork(engine: Engine, spec: WorkSpec): Promise<WorkStatus> {
  try {
    return await engine.start(spec);
  } catch (caught) {
    // The answer may have been lost, not the work: the engine says which.
    const status = await engine.status(spec.name).catch((lost: unknown) => {
      throw new ConnectorError("ENGINE_UNREACHABLE", `Engine ${engine.name} does not say whether it began a replica.`, {
        cause: lost,
      });
    });
    if (status.state === "absent") throw caught;
    return status;
  }
}

function workSpec(
  { deploymentName, name, work, spec }: Seated,
  engine: Engine,
  runtime: ReturnType<typeof requireRuntime>,
  folder: string,
  secret: Record<string, string>,
  log: ReplicaLog,
): WorkSpec {
  const inside = engine.inside(folder);
  const revision = name.slice(1, name.indexOf("."));
  const args = ["--model", `${inside}/${MODEL}`, "--name", deploymentName, "--model-version", revision];
  const threads = ["--threads", String(Math.max(1, Math.floor(spec.resources.cpus)))];
  const own = { HOME: `${inside}/home`, TMPDIR: `${inside}/tmp` };
  const base = { name: work, cwd: folder, ...log.files };
  if (runtime.kind === "program") {
    return {
      ...base,
      executable: runtime.path,
      args: [...runtime.args, ...args, "--socket", SOCKET, ...threads],
      env: { ...spec.env, ...HOST_ENVIRONMENT, ...own, ...runtime.env, ...secret },
      container: null,
    };
  }
  return {
    ...base,
    executable: "",
    args: [...args, "--port", String(SERVING_PORT), "--host", "0.0.0.0", ...threads],
    env: { ...spec.env, ...own, ...secret },
    container: { image: runtime.image, resources: spec.resources, network: { kind: "serving", port: SERVING_PORT } },
  };
}
