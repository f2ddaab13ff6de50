// Writers for the kills of writes.test.ts, each a program of its own: it changes a journal or a database without pause and says each
// change on standard output once it was promised. What it said must be found again, whatever became of it.
// Usage: writes.ts journal|store FOLDER COMMANDS [wait]; with `wait` it begins its changes at the first byte on standard input.
import { readSync, writeSync } from "node:fs";
import { join } from "node:path";
import { ConnectorError, jsonBody, newCommandId, systemClock, wait } from "@sallyport/protocol";
import { openJournal } from "../../agent/journal/sqlite-journal.ts";
import { openSqliteStore, type Scope } from "../../cloud/store/index.ts";

const [what, folder, count, waits] = process.argv.slice(2) as [string, string, string, string | undefined];
const promised = (...words: (string | number)[]): void => void writeSync(1, `${words.join(" ")}\n`);

function opened(...words: (string | number)[]): void {
  promised("opened", ...words);
  if (waits === "wait") readSync(0, Buffer.alloc(1));
}

/** Again until it goes, as the agent's runner does. Each refusal is said with its code. */
async function insist<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ConnectorError) || error.retry === "never" || attempt > 200) throw error;
      promised("refused", error.code);
      await wait(systemClock, 5, AbortSignal.timeout(10_000));
    }
  }
}

async function journal(): Promise<void> {
  const book = await openJournal({ file: join(folder, "journal.db"), clock: systemClock });
  const before = (await book.open()).length;
  opened(book.id, before);
  const one = async (n: number): Promise<void> => {
    const id = newCommandId();
    const command = {
      id,
      kind: "pipeline.run",
      resource: `run:${n}`,
      intent: JSON.stringify({ n }),
      body: jsonBody({ n }),
      acceptedAt: Date.now(),
      expires: Date.now() + 3_600_000,
    };
    await insist(() => book.accept(command, { incarnation: "one", sequence: n }));
    promised("accepted", id);
    await insist(() => book.advance(id, "running", [{ type: "command.running" }]));
    promised("running", id);
    await insist(() => book.put("test", id, { n }));
    promised("put", id);
    await insist(() => book.advance(id, "succeeded", [{ type: "command.succeeded", result: n }]));
    promised("succeeded", id);
    if (n % 4 === 0) {
      const through = book.lastSequence - 4;
      await insist(() => book.acknowledge(through));
      promised("acknowledged", through);
    }
  };
  // Two at a time, so that commits hold more than one.
  for (let n = 1; n <= Number(count); n += 2) await Promise.all([one(n), one(n + 1)]);
  await book.close();
}

async function store(): Promise<void> {
  const book = await openSqliteStore({ dir: folder });
  const { workspace } = await insist(() => book.ensureAdmin("admin", "default"));
  const scope: Scope = { workspace, actor: { id: "system", name: "system", via: "system" } };
  const pool = await insist(() => book.ensurePool(scope, "lab", Date.now()));
  opened(scope.workspace);
  const one = async (n: number): Promise<void> => {
    const id = newCommandId();
    const now = Date.now();
    await insist(() =>
      book.createCommand(scope, {
        id,
        pool: pool.id,
        kind: "pipeline.run",
        resource: `run:${n}`,
        intent: "{}",
        body: jsonBody({ n }),
        notBefore: now,
        expires: now + 3_600_000,
        createdAt: now,
      }),
    );
    promised("created", id);
    await insist(() => book.cancelQueued(scope, id, Date.now()));
    promised("cancelled", id);
  };
  for (let n = 1; n <= Number(count); n += 2) await Promise.all([one(n), one(n + 1)]);
  await book.close();
}

await (what === "journal" ? journal() : store());
promised("done");
