// Where a soak's programs and servers live: whatever was started ends with it, also at Ctrl+C.
import type { Teardown } from "../support/launcher.ts";

export async function onStage<T>(play: (t: Teardown) => Promise<T>): Promise<T> {
  const ends: (() => unknown)[] = [];
  const clear = async (): Promise<void> => {
    for (let end = ends.pop(); end !== undefined; end = ends.pop()) {
      try {
        await end();
      } catch (error) {
        console.error("something could not be ended:", error);
      }
    }
  };
  const stop = (): void => void clear().finally(() => process.exit(130));
  const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
  for (const signal of signals) process.once(signal, stop);
  try {
    return await play({ teardown: (end) => void ends.push(end) });
  } finally {
    await clear();
    for (const signal of signals) process.off(signal, stop);
  }
}
