// Entry of the journal's worker thread. Operations that are waiting when the disk becomes free go into one transaction,
// each in its savepoint; answers are posted after COMMIT, hence after the fsync. Never imported: started by
// sqlite-journal.ts.
import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { ConnectorError, toConnectorError, type ErrorBody } from "@sallyport/protocol/basics";
import {
  diskFault,
  JournalFile,
  leavesHandleSound,
  READS,
  type JournalFileOptions,
  type OperationName,
} from "./journal-file.ts";

export interface WorkerRequest {
  n: number;
  operation: OperationName | "close";
  args: unknown[];
}
export type WorkerReply =
  | {
      type: "ready";
      id: string;
      startCounter: number;
      lastSequence: number;
      acknowledgedThrough: number;
      dispatchSequences: Record<string, number>;
    }
  | { type: "refused"; error: ErrorBody; detail: string }
  | { type: "done"; lastSequence: number; answers: WorkerAnswer[] };
export type WorkerAnswer = { n: number; value: unknown } | { n: number; error: ErrorBody; detail: string };

/** One commit holds about this many at most: a bound on how long the first of them waits for the others. */
const MAX_BATCH = 256;

const port = parentPort!;
const options = workerData as JournalFileOptions & { count: boolean };
const detailOf = (error: unknown): string => (error instanceof Error ? (error.stack ?? error.message) : String(error));

function unavailable(error: unknown): ErrorBody {
  if (error instanceof ConnectorError) return error.toBody();
  return new ConnectorError(
    "JOURNAL_UNAVAILABLE",
    `The journal ${options.file} cannot be written: ${diskFault(error) ?? "unknown fault"}.`,
    {
      fix: "Mend the disk that holds the agent's state directory (free space, mount it read-write). The agent goes on by itself.",
    },
  ).toBody();
}

let journal: JournalFile;
/** Set after a failed commit: the file is opened anew before the next. */
let stale = false;
let lastSequence = 0;

function run(request: WorkerRequest): unknown {
  const operation = journal.operations[request.operation as OperationName] as (...args: unknown[]) => unknown;
  return operation(...request.args);
}

function answer(request: WorkerRequest, work: () => unknown): WorkerAnswer {
  try {
    return { n: request.n, value: work() };
  } catch (error) {
    if (diskFault(error) !== null) throw error;
    return { n: request.n, error: toConnectorError(error).toBody(), detail: detailOf(error) };
  }
}

function handle(batch: WorkerRequest[]): WorkerAnswer[] {
  const writes = batch.some((request) => !READS.has(request.operation as OperationName));
  try {
    if (stale) {
      journal.reopen();
      stale = false;
    }
    if (!writes) return batch.map((request) => answer(request, () => run(request)));
    journal.mustBeInPlace();
    const answers = journal.transaction(() =>
      batch.map((request) => answer(request, () => journal.savepoint(() => run(request)))),
    );
    lastSequence = journal.lastSequence();
    return answers;
  } catch (error) {
    // Ours is thrown before anything is written: the handle is as good as it was.
    stale = !(error instanceof ConnectorError) && !leavesHandleSound(error);
    const body = unavailable(error);
    return batch.map(({ n }) => ({ n, error: body, detail: detailOf(error) }));
  }
}

try {
  journal = new JournalFile(options);
  const startCounter = options.count ? journal.transaction(() => journal.begin()) : journal.starts();
  lastSequence = journal.lastSequence();
  port.postMessage({
    type: "ready",
    id: journal.id,
    startCounter,
    lastSequence,
    acknowledgedThrough: journal.acknowledgedThrough(),
    dispatchSequences: journal.dispatchSequences(),
  } satisfies WorkerReply);
  port.on("message", (first: WorkerRequest[]) => {
    const batch = first;
    while (batch.length < MAX_BATCH) {
      const next = receiveMessageOnPort(port) as { message: WorkerRequest[] } | undefined;
      if (next === undefined) break;
      batch.push(...next.message);
    }
    const close = batch.find((request) => request.operation === "close");
    const work = batch.filter((request) => request.operation !== "close");
    const answers = work.length === 0 ? [] : handle(work);
    if (close !== undefined) {
      try {
        journal.close();
      } catch {
        // What could not be written now was not acknowledged either.
      }
      answers.push({ n: close.n, value: null });
    }
    port.postMessage({ type: "done", lastSequence, answers } satisfies WorkerReply);
    if (close !== undefined) port.close();
  });
} catch (error) {
  port.postMessage({ type: "refused", error: unavailable(error), detail: detailOf(error) } satisfies WorkerReply);
  port.close();
}
