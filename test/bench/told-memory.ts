// What a program with told-memory.mjs holds after a forced collection.
import { join } from "node:path";
import { repository, waitFor, type Program } from "../support/launcher.ts";

export const toldMemory: readonly string[] = ["--import", join(repository, "test/bench/told-memory.mjs")];

export interface Memory {
  rss: number;
  heapUsed: number;
  external: number;
  arrayBuffers: number;
  /** Timers, sockets and whatever else keeps the event loop. */
  resources: number;
}

export async function memoryOf(program: Program): Promise<Memory> {
  const count = () => program.stderr.split("\nMEMORY ").length;
  const before = count();
  process.kill(program.pid, "SIGUSR2");
  await waitFor("the program to tell its memory", () => count() > before && program.stderr.endsWith("\n"));
  return JSON.parse(program.stderr.split("\nMEMORY ").at(-1)!.split("\n")[0]!) as Memory;
}
