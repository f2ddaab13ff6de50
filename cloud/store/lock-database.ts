// The lock of a PostgreSQL database, with the client that it needs loaded when it is taken.
import type { DatabaseLock, lockDatabase as lock } from "./postgres-lock.ts";

export type { DatabaseLock };

export const lockDatabase = async (...options: Parameters<typeof lock>): Promise<DatabaseLock> =>
  (await import("./postgres-lock.ts")).lockDatabase(...options);
