// Queries of the hot path, built and compiled once. Kysely makes a tree and a text of each query that it is given, which
// costs several times what SQLite takes to answer it; here only the values are new at each call. Operations alone use this.
import type { Compilable, CompiledQuery, Kysely, QueryResult } from "kysely";
import type { Tables } from "../tables.ts";
import type { Tx } from "./tx.ts";

/** Stands in a compiled query for a value that comes later. */
class Later {
  readonly name: string;
  constructor(name: string) {
    this.name = name;
  }
}

export interface Prepared<P extends object, R> {
  all(tx: Tx, values: P): Promise<R[]>;
  first(tx: Tx, values: P): Promise<R | undefined>;
  /** Answers the number of rows that it changed. */
  run(tx: Tx, values: P): Promise<number>;
}

/**
 * `build` is called once a dialect. Whatever it reads of `later` stands for the value of that name: it may be put where a
 * query takes a value, not where its text would depend on it (null tests, lists, `limit` by case).
 */
export function prepared<P extends object, R>(build: (db: Kysely<Tables>, later: P) => Compilable<R>): Prepared<P, R> {
  /** By the dialect's adapter: the texts differ, whatever connection they go over. */
  const made = new Map<unknown, CompiledQuery<R>>();
  const later = new Proxy({} as P, { get: (_target, name) => new Later(String(name)) });
  const execute = (tx: Tx, values: P): Promise<QueryResult<R>> => {
    const dialect = tx.db.getExecutor().adapter.constructor;
    let query = made.get(dialect);
    if (query === undefined) made.set(dialect, (query = build(tx.db, later).compile()));
    const parameters = query.parameters.map((value) =>
      value instanceof Later ? (values as Record<string, unknown>)[value.name] : value,
    );
    const ready = { ...query, parameters };
    return tx.execute === undefined ? tx.db.executeQuery(ready) : tx.execute<R>(ready);
  };
  return {
    all: async (tx, values) => (await execute(tx, values)).rows,
    first: async (tx, values) => (await execute(tx, values)).rows[0],
    run: async (tx, values) => Number((await execute(tx, values)).numAffectedRows ?? 0n),
  };
}

/** Inserts a row of a table. The columns are those of the first row that comes: each use gives the same. */
export function insertion<T extends keyof Tables & string>(table: T): Prepared<Tables[T], never> {
  let columns: string[] = [];
  const insert = prepared<Tables[T], never>((db, later) => {
    const row = Object.fromEntries(columns.map((column) => [column, later[column as keyof Tables[T]]]));
    return db.insertInto(table).values(row as never) as unknown as Compilable<never>;
  });
  const first = (values: Tables[T]) => {
    if (columns.length === 0) columns = Object.keys(values);
  };
  return {
    all: (tx, values) => (first(values), insert.all(tx, values)),
    first: (tx, values) => (first(values), insert.first(tx, values)),
    run: (tx, values) => (first(values), insert.run(tx, values)),
  };
}

/** The row that `later` stands for, column by column: what `values` of an insert takes. */
export const rowOf = <T extends object>(later: T, columns: readonly (keyof T & string)[]): T =>
  Object.fromEntries(columns.map((column) => [column, later[column]])) as unknown as T;
