// One control plane a database, as one a data directory: a second one would call the first one's sessions its own. Several
// processes of one control plane share the lock; one that is alone by its configuration keeps all others off. The lock is the server's and goes with its connection; when that breaks it is taken again, unless somebody else has it by then.
import { ConnectorError } from "@sallyport/protocol";
import pg from "pg";
import { databaseError, isOutage, marked } from "./postgres-connection.ts";
import { lockNumber } from "./postgres-schema.ts";
import { postgresClientConfig, shownDatabase } from "./postgres-url.ts";

const LOCK = lockNumber("control plane");
const CONNECT_MS = 5_000;
const AGAIN_MS = 1_000;
/** A process that died with its machine is noticed by the server after about so long; a start waits for that. */
const GONE_MS = 25_000;

const taken = (where: string, shared: boolean) =>
  new ConnectorError("CONFIG_INVALID", `Another control plane uses the database ${where}.`, {
    fix: shared
      ? "It runs as a single process: give each of them --peer-listen and the same --keys, or stop it first."
      : "Stop that one first, or give this one a database of its own. To run several processes give each of them --peer-listen.",
  });

export interface DatabaseLock {
  release(): Promise<void>;
}

/** `shared`: others that say so too may have it at the same time. `patient`: waits for one that is just stopping, and for a database that is just starting. `onLost`: another control plane took the database while it was away. */
export async function lockDatabase(
  address: string,
  { patient, shared = false, onLost }: { patient: boolean; shared?: boolean; onLost(error: ConnectorError): void },
): Promise<DatabaseLock> {
  const where = shownDatabase(address);
  let released = false;
  let held: pg.Client | null = null;
  let timer: NodeJS.Timeout | undefined;

  /** False: somebody else has it. */
  async function take(): Promise<boolean> {
    const client = new pg.Client({
      ...postgresClientConfig(address),
      connectionTimeoutMillis: CONNECT_MS,
      keepAlive: true,
      keepAliveInitialDelayMillis: 5_000,
    });
    client.on("error", () => {});
    try {
      await client.connect();
      await client.query("set tcp_keepalives_idle = 5; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3");
      const { rows } = await client.query(`select pg_try_advisory_lock${shared ? "_shared" : ""}(${LOCK}) as got`);
      if ((rows[0] as { got: boolean }).got !== true) {
        await client.end();
        return false;
      }
    } catch (error) {
      await client.end().catch(() => {});
      throw marked(error);
    }
    held = client;
    client.once("end", () => {
      held = null;
      if (!released) again();
    });
    return true;
  }
  const again = (): void => {
    timer = setTimeout(() => {
      take().then(
        (got) => {
          if (released) void held?.end();
          else if (!got) onLost(taken(where, shared));
        },
        () => {
          if (!released) again();
        },
      );
    }, AGAIN_MS);
    timer.unref();
  };

  const until = performance.now() + (patient ? GONE_MS : 0);
  for (;;) {
    let failure: unknown;
    try {
      if (await take()) break;
      failure = taken(where, shared);
    } catch (error) {
      // A database that starts beside us may still be coming up.
      if (!isOutage(error)) throw databaseError(error, where);
      failure = error;
    }
    if (performance.now() >= until) throw databaseError(failure, where);
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  return {
    async release() {
      released = true;
      clearTimeout(timer);
      await held?.end();
    },
  };
}
