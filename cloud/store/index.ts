// The cloud's store: its port and its two forms, over SQLite and over PostgreSQL. Named operations over plain data; no
// SQL, row or transaction leaves this folder. Everything of the cloud may import this file; nothing but this folder's own
// imports what lies behind it.
export * from "./store.ts";
export { backupStore, restoreStore } from "./backup-store.ts";
export { openStore, type StoreOptions } from "./open-store.ts";
export { openSqliteStore, DATABASE_FILE, type SqliteStoreOptions } from "./sqlite-store.ts";
export { postgresClientConfig, shownDatabase, withoutPassword } from "./postgres-url.ts";
export { lockDatabase, type DatabaseLock } from "./lock-database.ts";
