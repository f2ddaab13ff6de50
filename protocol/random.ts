// Random bytes for names, of which many are needed: one call of the generator serves many, since each costs a system
// call. Not for keys and secrets: what was given out stays in memory for a while.
import { randomFillSync } from "node:crypto";

const pool = Buffer.alloc(4096);
let used = pool.length;

/** Valid until the next call. At most as long as the pool. */
export function randomName(bytes: number): Buffer {
  if (used + bytes > pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  used += bytes;
  return pool.subarray(used - bytes, used);
}
