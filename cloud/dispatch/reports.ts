// The reports' stream: what agents have done, committed in batches and acknowledged after the commit.
import { channel } from "node:diagnostics_channel";
import {
  ConnectorError,
  ndjsonLine,
  readJsonBody,
  readNdjson,
  reportBodySchema,
  reportSchema,
  reportsOpenSchema,
  toConnectorError,
  type Clock,
  type LinkStream,
  type PoolId,
  type Report,
  type ReportAck,
  type WorkspaceId,
} from "@sallyport/protocol";
import type { Logger } from "pino";
import type { CloudSession, Sessions } from "../link/sessions.ts";
import type { Store } from "../store/store.ts";
import type { Handoffs } from "./handoffs.ts";
import type { DispatchMetrics } from "./metrics.ts";

export interface ReportsDeps {
  store: Store;
  sessions: Sessions;
  clock: Clock;
  log: Logger;
  metrics: DispatchMetrics;
  handoffs: Handoffs;
  /** Work ended: there may be room for what waits. */
  ended: (workspace: WorkspaceId, pool: PoolId) => void;
}

/** A crash point for tests, and an event for whoever observes. */
const committed = channel("sallyport:cloud:reports.committed");

/** Reports in one transaction, and read ahead while it commits. Their bytes are bounded by the stream's credit. */
const BATCH = 256;

export function serveReports(deps: ReportsDeps): void {
  deps.sessions.onStream("reports", (stream, session) => {
    takeReports(deps, stream, session).catch((caught: unknown) => {
      const error = toConnectorError(caught);
      if (error.code === "INTERNAL")
        deps.log.error(
          { err: caught, agent: session.replica },
          "committing reports failed; the agent sends them again",
        );
      // Not when the agent or its link ended it: that is said elsewhere.
      else if (!stream.signal.aborted || stream.signal.reason === error)
        deps.log.warn(
          { code: error.code, agent: session.replica },
          `the reports' stream was refused: ${error.message}`,
        );
      stream.reset(error);
    });
  });
}

async function takeReports(deps: ReportsDeps, stream: LinkStream, session: CloudSession): Promise<void> {
  const open = reportsOpenSchema.safeParse(stream.head);
  if (!open.success)
    throw new ConnectorError("PROTOCOL_ERROR", "The head of the reports' stream does not name a journal.");
  if (open.data.journal !== session.journal)
    throw new ConnectorError(
      "PROTOCOL_ERROR",
      `The reports are of journal ${open.data.journal}, the session said ${session.journal}.`,
    );
  stream.respond({ type: "reports" });
  // Line by line, whoever has something to say.
  let writing: Promise<void> = Promise.resolve();
  const send = (line: ReportAck): Promise<void> =>
    (writing = writing.catch(() => undefined).then(() => stream.write(ndjsonLine(line))));
  const detach = deps.handoffs.attach(session, send);

  let pending: Report[] = [];
  let over = false;
  let failure: ConnectorError | null = null;
  let wakeWriter: () => void = () => {};
  let wakeReader: () => void = () => {};
  /** Never acknowledge beyond what came on this stream: the agent would take that for a fault. */
  let received = 0;
  /**
   * A stream begins with the lowest report that the agent still holds: what lies before was acknowledged, if not by this
   * database then by the one that it was restored from. Waiting for it would be waiting for ever.
   */
  let lowestHeld = open.data.from;

  const reading = (async () => {
    try {
      for await (const line of readNdjson(unended(stream.bytes))) {
        const report = parseReport(line, session.journal);
        lowestHeld ??= report.sequence;
        const due = Math.max(received + 1, lowestHeld);
        // Nothing would bring it on this stream any more: the agent begins a new one after what is committed.
        if (report.sequence > due)
          throw new ConnectorError("PROTOCOL_ERROR", `Report ${report.sequence} came where ${due} was due.`);
        received = Math.max(received, report.sequence);
        pending.push(report);
        wakeWriter();
        if (pending.length >= BATCH) await new Promise<void>((resolve) => (wakeReader = resolve));
      }
    } catch (error) {
      failure = toConnectorError(error);
    } finally {
      over = true;
      wakeWriter();
    }
  })();

  try {
    for (;;) {
      if (pending.length === 0) {
        if (over) break;
        await new Promise<void>((resolve) => {
          wakeWriter = resolve;
          if (over || pending.length > 0) resolve();
        });
        continue;
      }
      const batch = pending;
      pending = [];
      wakeReader();
      // What came whole is committed even if the stream broke after it.
      const { committedThrough, ...handed } = await deps.store.commitReports(
        session.workspace,
        session.replica,
        session.journal,
        batch,
        deps.clock.now(),
        lowestHeld,
      );
      committed.publish({ through: committedThrough });
      deps.metrics.reports(batch.length);
      if (batch.some((report) => releasesCommand(report))) deps.handoffs.tell(session.workspace, null);
      if (batch.some((report) => endsCommand(report))) deps.ended(session.workspace, session.pool);
      if (stream.signal.aborted) break;
      const through = Math.min(committedThrough, received);
      if (through > 0) await send({ committedThrough: through, ...handed });
    }
  } catch (error) {
    stream.reset(toConnectorError(error));
    wakeReader();
    await reading;
    throw error;
  } finally {
    detach();
  }
  await reading;
  if (failure !== null) throw failure as ConnectorError;
  await stream.end();
}

/** Leaving a loop over it does not reset the stream: the reset that follows says why. */
const unended = (bytes: AsyncIterable<Buffer>): AsyncIterable<Buffer> => ({
  [Symbol.asyncIterator]: () => {
    const iterator = bytes[Symbol.asyncIterator]();
    return { next: () => iterator.next() };
  },
});

function parseReport(line: unknown, journal: string): Report {
  const report = reportSchema.safeParse(line);
  if (!report.success) throw malformed(report.error.issues[0]!, "report");
  if (report.data.journal !== journal)
    throw new ConnectorError("PROTOCOL_ERROR", `Report ${report.data.sequence} is of another journal than its stream.`);
  // A sealed body is opaque here; one in the clear must be what it says.
  if (report.data.body.enc === "none") {
    const body = reportBodySchema.safeParse(readJsonBody(report.data.body));
    if (!body.success) throw malformed(body.error.issues[0]!, `body of report ${report.data.sequence}`);
  }
  return report.data;
}

const malformed = (issue: { path: PropertyKey[]; message: string }, what: string): ConnectorError =>
  new ConnectorError(
    "PROTOCOL_ERROR",
    `The ${what} is malformed at ${issue.path.join(".") || "its root"}: ${issue.message}.`,
    { fix: "Update the agent or the control plane, whichever is older." },
  );

const releasesCommand = (report: Report): boolean =>
  report.body.enc === "none" && report.body.data.startsWith('{"type":"command.released"');
const endsCommand = (report: Report): boolean =>
  report.body.enc === "none" && /^\{"type":"command\.(succeeded|failed|cancelled)"/.test(report.body.data);
