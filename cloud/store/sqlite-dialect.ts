// Kysely over node:sqlite: one connection, synchronous underneath. Not a pool, not for the main thread: only the store's
// workers open it. Transactions are the worker's business (a batch), so Kysely's own are refused.
import type { DatabaseSync, SQLInputValue, StatementSync } from "node:sqlite";
import {
  Kysely,
  SqliteAdapter,
  SqliteIntrospector,
  SqliteQueryCompiler,
  type CompiledQuery,
  type DatabaseConnection,
  type Dialect,
  type Driver,
  type QueryResult,
} from "kysely";
import type { Tables } from "./tables.ts";

/** More texts than the queries below ever make; beyond it the oldest are prepared anew. */
const MAX_STATEMENTS = 500;
/** Of their texts together: prepared, one with thousands of parameters takes ten times its text. */
const MAX_TEXT = 1024 ** 2;

class Connection implements DatabaseConnection {
  readonly #database: DatabaseSync;
  /** `rows`: whether it answers with rows; asking SQLite each time costs as much as a small query. */
  readonly #statements = new Map<string, { statement: StatementSync; rows: boolean }>();
  #text = 0;

  constructor(database: DatabaseSync) {
    this.#database = database;
  }

  executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
    // Settled at once: an operation's awaits are microtasks, no other work of the worker comes between them.
    try {
      let known = this.#statements.get(query.sql);
      if (known === undefined) {
        const prepared = this.#database.prepare(query.sql);
        known = { statement: prepared, rows: prepared.columns().length > 0 };
        this.#statements.set(query.sql, known);
        this.#text += query.sql.length;
        for (const oldest of this.#statements.keys()) {
          if (this.#statements.size <= MAX_STATEMENTS && this.#text <= MAX_TEXT) break;
          this.#statements.delete(oldest);
          this.#text -= oldest.length;
        }
      }
      const { statement, rows } = known;
      const parameters = query.parameters as SQLInputValue[];
      if (rows) return Promise.resolve({ rows: statement.all(...parameters) as R[] });
      const { changes } = statement.run(...parameters);
      return Promise.resolve({ rows: [], numAffectedRows: BigInt(changes) });
    } catch (error) {
      return Promise.reject(error as Error);
    }
  }

  // eslint-disable-next-line require-yield
  async *streamQuery<R>(): AsyncIterableIterator<QueryResult<R>> {
    throw new Error("The store does not stream rows.");
  }
}

const refuse = (): Promise<never> => Promise.reject(new Error("Transactions belong to the store's worker."));

export function kyselyOver(database: DatabaseSync): {
  db: Kysely<Tables>;
  execute: <R>(query: CompiledQuery<R>) => Promise<QueryResult<R>>;
} {
  const connection = new Connection(database);
  const driver: Driver = {
    init: () => Promise.resolve(),
    acquireConnection: () => Promise.resolve(connection),
    beginTransaction: refuse,
    commitTransaction: refuse,
    rollbackTransaction: refuse,
    releaseConnection: () => Promise.resolve(),
    destroy: () => Promise.resolve(),
  };
  const dialect: Dialect = {
    createAdapter: () => new SqliteAdapter(),
    createDriver: () => driver,
    createIntrospector: (db) => new SqliteIntrospector(db),
    createQueryCompiler: () => new SqliteQueryCompiler(),
  };
  return { db: new Kysely<Tables>({ dialect }), execute: (query) => connection.executeQuery(query) };
}
