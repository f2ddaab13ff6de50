// What an operation is given, and the small tools all of them share. Operations are re-runnable functions of plain data:
// no clock of their own but the `now` they are given, nothing kept between calls.
import { ConnectorError, type WorkspaceId } from "@sallyport/protocol";
import type { CompiledQuery, Kysely, QueryResult } from "kysely";
import { sql, type ExpressionBuilder, type SqlBool, type Expression } from "kysely";
import type { ChangeRow, Page, PageQuery } from "../store.ts";
import type { Tables } from "../tables.ts";

export interface Tx {
  readonly db: Kysely<Tables>;
  /** The connection itself, for queries that are compiled already. Absent = through `db`. */
  readonly execute?: <R>(query: CompiledQuery<R>) => Promise<QueryResult<R>>;
  /** Numbers a change of this thing in the same transaction; once per operation however often it is called. */
  touch(workspace: string, entity: ChangeRow["entity"], id: string): void;
}

const decodeCursor = (cursor: string): [number, string] => {
  try {
    const value = JSON.parse(Buffer.from(cursor, "base64url").toString("utf8")) as unknown;
    if (Array.isArray(value) && value.length === 2 && Number.isSafeInteger(value[0]) && typeof value[1] === "string")
      return value as [number, string];
  } catch {
    // answered below
  }
  throw new ConnectorError("INPUT_INVALID", "The cursor is not one that a list has answered.", {
    fix: "Leave `cursor` out to begin again.",
    details: { errors: [{ path: "query.cursor", message: "not a cursor" }] },
  });
};
const encodeCursor = (at: number, id: string): string => Buffer.from(JSON.stringify([at, id])).toString("base64url");

/** Condition for the rows after the cursor, newest first. `at` and `id` are column references. */
export const afterCursor = (at: string, id: string, cursor: string | undefined): Expression<SqlBool> => {
  if (cursor === undefined) return sql<SqlBool>`1 = 1`;
  const [time, last] = decodeCursor(cursor);
  return sql<SqlBool>`(${sql.ref(at)}, ${sql.ref(id)}) < (${time}, ${last})`;
};

/** From `limit + 1` rows: a page of `limit`, and the cursor of its last row when there is more. */
export function pageOf<R, T>(
  rows: R[],
  query: PageQuery,
  position: (row: R) => [number, string],
  map: (row: R) => T,
): Page<T> {
  const items = rows.slice(0, query.limit);
  const last = items.at(-1);
  return {
    items: items.map(map),
    nextCursor: rows.length > query.limit && last !== undefined ? encodeCursor(...position(last)) : null,
  };
}

export const parseJson = <T>(text: string | null): T | null => (text === null ? null : (JSON.parse(text) as T));
export const toJson = (value: unknown): string | null =>
  value === null || value === undefined ? null : JSON.stringify(value);
export const ws = (id: string): WorkspaceId => id as WorkspaceId;

/** Next number of a row within its parent. */
export async function nextNumber(current: Promise<{ n: number | null } | undefined>): Promise<number> {
  return ((await current)?.n ?? 0) + 1;
}
export type Eb<T extends keyof Tables> = ExpressionBuilder<Tables, T>;
