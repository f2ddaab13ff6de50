// The targets of effects, which count them: a file that steps append to and an HTTP server that they call. What our own
// record says of them plays no part here.
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { tempDir, type Teardown } from "../support/launcher.ts";

export interface Targets {
  readonly url: string;
  /** Steps on this machine append their key. */
  readonly file: string;
  /** Replicas of deployments append their work's name and when they were born. */
  readonly starts: string;
  /** How often each key was seen, by target. */
  counts(): { file: Map<string, number>; server: Map<string, number>; starts: Map<string, number> };
  /** Works of replicas in the order of their birth. */
  births(): string[];
  /** By whoever watches an engine from beside. */
  started(work: string): void;
}

const tally = (lines: Iterable<string>): Map<string, number> => {
  const counts = new Map<string, number>();
  for (const line of lines) if (line !== "") counts.set(line, (counts.get(line) ?? 0) + 1);
  return counts;
};

/** `host`: where steps can reach it; an address of this machine. */
export async function startTargets(t: Teardown, host = "127.0.0.1"): Promise<Targets> {
  const folder = tempDir(t, "effects");
  const file = join(folder, "steps");
  const starts = join(folder, "starts");
  for (const path of [file, starts]) writeFileSync(path, "", { mode: 0o666 });
  let born = 0;
  const births = (): string[] =>
    readFileSync(starts, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => line.split(" ") as [string, string])
      .toSorted(([, a], [, b]) => Number(a) - Number(b))
      .map(([work]) => work);
  const server = new Map<string, number>();
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    let key = "";
    for await (const chunk of request) key += String(chunk);
    server.set(key, (server.get(key) ?? 0) + 1);
    response.end();
  };
  const listener = createServer((request, response) => {
    answer(request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    listener.once("error", reject);
    listener.listen(0, host, resolve);
  });
  t.teardown(() => {
    listener.closeAllConnections();
    listener.close();
  });
  return {
    url: `http://${host}:${(listener.address() as AddressInfo).port}/`,
    file,
    starts,
    counts: () => ({
      file: tally(readFileSync(file, "utf8").split("\n")),
      server: new Map(server),
      starts: tally(births()),
    }),
    births,
    started: (work) => appendFileSync(starts, `${work} ${++born}\n`),
  };
}
