// The cloud's store: its port and its SQLite form. Named operations over plain data; no SQL, row or transaction leaves
// this folder. Everything of the cloud may import this file; nothing but this folder's own imports what lies behind it.
export * from "./store.ts";
export { openSqliteStore, DATABASE_FILE, type SqliteStoreOptions } from "./sqlite-store.ts";
