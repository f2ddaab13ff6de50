// What the end of a replica means: to the record, and to people.
import { isErrorCode, type ErrorCode, type ReplicaExit } from "@sallyport/protocol";
import type { WorkStatus } from "../../engines/engine.ts";
import type { ReplicaRecord } from "./desired.ts";
import type { LastWords } from "./replica-log.ts";

/** Why a replica does not serve. */
export interface Problem {
  code: ErrorCode;
  message: string;
  fix: string | null;
  details: Record<string, unknown>;
  /** True: likely over in a moment. */
  soft: boolean;
}

/** Exit codes of the serving runtime. */
const EXIT = { usage: 64, model: 65, taken: 69 } as const;
/** So many ends in a row are a loop. */
const LOOP = 2;

export function exitOf(
  ended: Extract<WorkStatus, { state: "exited" }> | { state: "absent" },
  record: ReplicaRecord,
  logSeq: number,
  now: number,
): ReplicaExit {
  const about = { start: record.starts, logSeq };
  if (ended.state === "absent") return { at: now, reason: "removed", code: null, signal: null, ...about };
  const { endedAt, reason, code, signal } = ended;
  return { at: endedAt, reason, code, signal, ...about };
}

export function problemOfExit(
  replica: string,
  exit: ReplicaExit,
  crashes: number,
  lastWords: LastWords | null,
  /** It was ended on purpose, for this. */
  restarted: Problem | null,
  pauseMs: number,
  /** What its engine holds it to; null where nothing does. */
  memoryBytes: number | null,
): Problem {
  const details = { replica, start: exit.start, logSeq: exit.logSeq, exit };
  const soft = crashes < LOOP;
  if (restarted !== null) return { ...restarted, details, soft };
  if (exit.reason === "out-of-memory" || lastWords?.code === "OUT_OF_MEMORY") {
    return {
      code: "OUT_OF_MEMORY",
      message:
        memoryBytes === null
          ? `Replica ${replica} needed more memory than this machine has left and was ended.`
          : `Replica ${replica} reached its memory limit of ${memoryBytes} bytes and was ended.`,
      fix:
        memoryBytes === null
          ? "Give the machine more memory, or let it serve less."
          : "Raise resources.memoryBytes, or deploy a smaller model.",
      details: memoryBytes === null ? details : { ...details, memoryBytes },
      soft: false,
    };
  }
  if (exit.code === EXIT.model || exit.code === EXIT.taken || lastWords?.code === "MODEL_REFUSED") {
    const code =
      lastWords !== null && isErrorCode(lastWords.code)
        ? lastWords.code
        : exit.code === EXIT.taken
          ? "PORT_TAKEN"
          : "MODEL_REFUSED";
    return {
      code,
      message:
        lastWords === null
          ? `The runtime of replica ${replica} gave up; its log says why.`
          : `Replica ${replica}: ${lastWords.message}`,
      fix:
        code === "MODEL_REFUSED"
          ? "Deploy a model that the runtime can load; a revision that served before goes on until then."
          : "Look into the replica's log.",
      details,
      soft: false,
    };
  }
  const again = `It is started again in ${Math.ceil(pauseMs / 1000)} s.`;
  const how =
    exit.reason === "removed"
      ? "was removed at the engine"
      : exit.reason === "killed"
        ? "was stopped at the agent's host"
        : exit.signal !== null
          ? `was ended by ${exit.signal}`
          : exit.code === null
            ? "ended while nobody could see how"
            : `ended with exit code ${exit.code}`;
  return {
    code: soft ? "REPLICA_UNREADY" : "CRASH_LOOP",
    message: soft
      ? `Replica ${replica} ${how}. ${again}`
      : `Replica ${replica} ${how}, ${crashes} times in a row. ${again}`,
    fix: soft
      ? null
      : exit.code === EXIT.usage
        ? "The runtime does not know the agent's arguments: are both of one version?"
        : "Its log says why; the waits between starts grow to 5 minutes.",
    details,
    soft,
  };
}
