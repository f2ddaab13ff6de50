// Logs of steps: raw output in, numbered and redacted records in capped segment files out, and back to readers. It knows
// neither engine nor pipeline, and asks no policy: whoever lets logs out does. Features and main.ts may import this door.
export { folderSize, LogStore, type LogAddress, type LogStoreOptions, type ReadLogOptions } from "./log-store.ts";
export type { AttemptLog } from "./attempt-log.ts";
