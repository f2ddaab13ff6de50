// One connection to PostgreSQL as the operations see it, and what its failures are called. Nothing but cloud/store
// imports this file.
import { ConnectorError, toConnectorError } from "@sallyport/protocol";
import { Kysely, PostgresDialect, type PostgresPool, type PostgresPoolClient } from "kysely";
import pg from "pg";
import { postgresClientConfig } from "./postgres-url.ts";
import type { Tables } from "./tables.ts";

const INT8 = 20;
const NUMERIC = 1700;
/** Beyond this a number is not the one that was stored: a fault of ours, never shown as a wrong number. */
const exact = (text: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value)) throw new RangeError(`The database answered ${text}, which is no safe integer.`);
  return value;
};
export const types = {
  getTypeParser(oid: number, format?: "text" | "binary") {
    if (oid === INT8 || oid === NUMERIC) return exact;
    return pg.types.getTypeParser(oid, format as "text");
  },
} as pg.CustomTypesConfig;

/** A statement that takes longer is ended by the server, and by us when the server is not heard of any more. */
const STATEMENT_MS = 15_000;
const ANSWER_MS = 20_000;
const CONNECT_MS = 5_000;
/** A process of ours that stands still must not hold a workspace's lock for ever. */
const IDLE_IN_TRANSACTION_MS = 30_000;

export function makePool(address: string, max: number, onIdleFailure: (error: Error) => void): pg.Pool {
  const pool = new pg.Pool({
    ...postgresClientConfig(address),
    max,
    types,
    // Several statements on their way at once: BEGIN and the lock cost no wait of their own.
    pipeline: true,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    connectionTimeoutMillis: CONNECT_MS,
    statement_timeout: STATEMENT_MS,
    query_timeout: ANSWER_MS,
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
    idleTimeoutMillis: 60_000,
    // A plan that was kept from when a table was small reads all of it when it has grown, until the next ANALYZE.
    onConnect: (client) => client.query("set plan_cache_mode = force_custom_plan") as unknown as void,
  });
  // A connection that breaks while nobody uses it is replaced by the pool; without a listener it would end the process.
  pool.on("error", onIdleFailure);
  return pool;
}

/** Texts that came again are worth to be kept; lists of changing length make ever new texts, which are not. */
const MAX_PREPARED = 300;
const names = new Map<string, string>();
let seenOnce = new Set<string>();
function nameOf(text: string): string | undefined {
  const name = names.get(text);
  if (name !== undefined || names.size >= MAX_PREPARED) return name;
  if (!seenOnce.has(text)) {
    if (seenOnce.size >= MAX_PREPARED) seenOnce = new Set();
    seenOnce.add(text);
    return undefined;
  }
  seenOnce.delete(text);
  const made = `s${names.size + 1}`;
  names.set(text, made);
  return made;
}

const known = new WeakMap<pg.PoolClient, Kysely<Tables>>();

/** Kysely over this one connection, whose transaction is the caller's business. */
export function kyselyOf(client: pg.PoolClient): Kysely<Tables> {
  let made = known.get(client);
  if (made === undefined) {
    const only = {
      query: (text: string, parameters: readonly unknown[]) => query(client, text, parameters, nameOf(text)),
      release: () => {},
    } as unknown as PostgresPoolClient;
    const pool: PostgresPool = { connect: async () => only, end: async () => {}, options: {} };
    known.set(client, (made = new Kysely<Tables>({ dialect: new PostgresDialect({ pool }) })));
  }
  return made;
}

const sqlState = (value: unknown): string | undefined =>
  value instanceof pg.DatabaseError ? (value.code ?? undefined) : undefined;

/** Serialization failure, deadlock: nothing was written, the same again may go through. */
export const mayRepeat = (value: unknown): boolean => ["40001", "40P01"].includes(sqlState(value) ?? "");

/** What `pg` throws that is not the server's own answer: the connection broke, closed, or never came. It has no codes for it. */
class ConnectionFault extends Error {
  constructor(cause: unknown) {
    super("The connection to the database failed.", { cause });
    this.name = "ConnectionFault";
  }
}
/** Failures of a program, not of a connection: a value that cannot be sent or read. */
const isOurs = (error: unknown) => error instanceof TypeError || error instanceof RangeError;
export const marked = (error: unknown): unknown =>
  error instanceof pg.DatabaseError || error instanceof ConnectionFault || isOurs(error)
    ? error
    : new ConnectionFault(error);

export async function connect(pool: pg.Pool): Promise<pg.PoolClient> {
  try {
    return await pool.connect();
  } catch (error) {
    throw marked(error);
  }
}
/** `name`: prepared under it once a connection, understood once instead of each time. */
export async function query(
  client: pg.PoolClient,
  text: string,
  values?: readonly unknown[],
  name?: string,
): Promise<pg.QueryResult> {
  try {
    return await (name === undefined
      ? client.query(text, values as unknown[])
      : client.query({ name, text, values: values as unknown[] }));
  } catch (error) {
    throw marked(error);
  }
}

/** The connection is gone or was never there: the next one may work. */
export function isOutage(value: unknown): boolean {
  const state = sqlState(value);
  if (state === undefined) return value instanceof ConnectionFault && !isTls(value.cause);
  // Connection exceptions; ended by the administrator, a crash, a start or an idle limit; too many; read-only (fail-over).
  return state.startsWith("08") || ["57P01", "57P02", "57P03", "57P05", "25P03", "53300", "25006"].includes(state);
}

export const unavailable = (where: string, why: string, cause: unknown): ConnectorError =>
  new ConnectorError("DATABASE_UNAVAILABLE", `The control plane's database ${where} ${why}.`, {
    fix: "If it never answered, check its address and sslmode. Otherwise work goes on by itself when it is back; what was not answered may be sent again with its Idempotency-Key.",
    cause,
  });

/** A database's failure in our words; everything else by the common entrance. */
export function databaseError(value: unknown, where: string): ConnectorError {
  if (value instanceof ConnectorError) return value;
  if (isOutage(value)) return unavailable(where, "cannot be reached", value);
  const state = sqlState(value) ?? "";
  switch (state) {
    case "57014":
      return unavailable(where, `took longer than ${STATEMENT_MS / 1000} s over a statement`, value);
    case "40001":
    case "40P01":
      return unavailable(where, "had too many transactions in each other's way", value);
    case "53100":
      return new ConnectorError("STORAGE_FULL", `No space is left for the database ${where}.`, {
        fix: "Free space on the database's disk; work goes on by itself.",
        cause: value,
      });
    case "XX001":
    case "XX002":
      return new ConnectorError("STORAGE_CORRUPT", `The database ${where} says that it is damaged.`, {
        fix: "Put a backup in its place.",
        cause: value,
      });
    case "28P01":
    case "28000":
    case "3D000":
    case "42501":
      return new ConnectorError(
        "CONFIG_INVALID",
        `The database ${where} refuses the control plane: ${REFUSALS[state]}.`,
        { fix: "Check user, password and name in the database's address, and the user's rights there.", cause: value },
      );
  }
  if (value instanceof ConnectionFault)
    return new ConnectorError("CONFIG_INVALID", `There is no safe connection to the database ${where}.`, {
      fix: "Name its CA's file by sslrootcert in the address and check the host name; sslmode=disable goes without TLS.",
      cause: value,
    });
  return toConnectorError(value);
}
const REFUSALS: Record<string, string> = {
  "28P01": "wrong user or password",
  "28000": "this user may not sign in that way",
  "3D000": "there is no database of that name",
  "42501": "the user lacks a right",
};
const isTls = (value: unknown): boolean => {
  const code = (value as NodeJS.ErrnoException | null)?.code ?? "";
  return (
    code.startsWith("ERR_TLS") || code.startsWith("ERR_SSL") || /CERT|VERIFY|INVALID_CA|INVALID_PURPOSE|CRL/.test(code)
  );
};
