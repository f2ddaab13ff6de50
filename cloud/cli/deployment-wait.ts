// Waiting for a deployment to stand, or to be gone: what changes is said as it comes, and what went wrong at the end.
import { ConnectorError, ERROR_CODES, isErrorCode } from "@sallyport/protocol";
import type { DeploymentDetail } from "../http/api.ts";
import type { Client } from "./client.ts";
import { EndWith, EXIT } from "./exit.ts";
import { tame } from "./tame.ts";

const LOOK_MS = 500;
/** Off a terminal, a sign of life. */
const ALIVE_MS = 10_000;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

type Condition = NonNullable<DeploymentDetail["observed"]>["conditions"][number];

/** Until every wanted replica of the wanted revision is ready. Throws what keeps it from that. */
export const until = (client: Client, made: DeploymentDetail, timeoutMs: number): Promise<DeploymentDetail> =>
  watch(client, made, timeoutMs, (now) => {
    if (now.removedAt !== null) throw new EndWith(EXIT.conflict, `${now.name} was removed meanwhile`);
    if (now.generation !== made.generation)
      throw new EndWith(
        EXIT.conflict,
        `generation ${now.generation} took the place of generation ${made.generation} of ${now.name}: somebody else changed it`,
      );
    if (now.error !== null) throw ConnectorError.fromBody(now.error);
    if (now.appliedGeneration !== now.generation) return false;
    if (now.state === "available") return true;
    if (now.state !== "failed" && now.state !== "degraded") return false;
    const broken = now.observed?.conditions.filter((condition) => !condition.ok) ?? [];
    const final = broken.find(staysBroken) ?? (now.state === "failed" && !broken.some(passes) ? broken[0] : undefined);
    if (final !== undefined) throw failure(now, final);
    return false;
  });

export const untilGone = (client: Client, made: DeploymentDetail, timeoutMs: number): Promise<DeploymentDetail> =>
  watch(client, made, timeoutMs, (now) => {
    if (now.error !== null) throw ConnectorError.fromBody(now.error);
    return now.removedAt !== null;
  });

async function watch(
  client: Client,
  made: DeploymentDetail,
  timeoutMs: number,
  done: (now: DeploymentDetail) => boolean,
): Promise<DeploymentDetail> {
  const startedAt = performance.now();
  let said = "";
  let saidAt = startedAt;
  for (;;) {
    const now = await client.json<DeploymentDetail>(`/v1/deployments/${made.id}`);
    const { waiting } = now;
    const reason =
      waiting === null
        ? now.stateReason
        : waiting.code === "OFFERED"
          ? waiting.text // it passes within seconds
          : `${waiting.text} ${waiting.fix}`;
    const line = `${now.state}, ${now.replicasReady ?? "?"} of ${now.spec.replicas} ready: ${reason}`;
    if (now.removedAt !== null) process.stderr.write(`${now.name} is removed\n`);
    else if (line !== said) {
      process.stderr.write(`${tame(line)}\n`);
      said = line;
      saidAt = performance.now();
    } else if (performance.now() - saidAt > ALIVE_MS) {
      process.stderr.write(`still ${now.state} after ${Math.round((performance.now() - startedAt) / 1000)} s\n`);
      saidAt = performance.now();
    }
    if (done(now)) return now;
    if (performance.now() - startedAt > timeoutMs)
      throw new EndWith(
        EXIT.timeout,
        `${now.name} is ${now.state} after ${Math.round(timeoutMs / 1000)} s: ${reason} Only the wait has ended; look with: sallyport deployment get ${now.name}`,
      );
    await pause(LOOK_MS);
  }
}

/** It does not mend itself without a change, or has tried often enough. */
const staysBroken = ({ code }: Condition): boolean =>
  code === "CRASH_LOOP" || (isErrorCode(code) && ERROR_CODES[code].retry === "never");

/** Nothing is wrong with what was asked for: it goes on by itself when others are done or the engine is back. */
const passes = ({ code }: Condition): boolean => code === "AT_CAPACITY" || code === "ENGINE_UNREACHABLE";

function failure(now: DeploymentDetail, condition: Condition): ConnectorError {
  const replica = condition.details?.["replica"];
  const begun = (now.observed?.replicas.find(({ name }) => name === replica)?.starts ?? 0) > 0;
  const log =
    typeof replica === "string" && begun
      ? ` Its last lines: sallyport deployment logs ${now.name} ${replica} --tail 20`
      : "";
  return ConnectorError.fromBody({
    code: condition.code,
    message: condition.message,
    fix: `${condition.fix ?? ""}${log}`.trim(),
    ...(condition.details === undefined ? {} : { details: condition.details }),
  });
}
