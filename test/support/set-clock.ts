// A program's wall clock, set as by a hand or a time server while it runs; what is monotonic goes on. By libfaketime: for
// programs that the test starts, not for the machine.
import { existsSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { tempDir, type Teardown } from "./launcher.ts";

function library(): string | undefined {
  for (const folder of ["/usr/lib", "/usr/lib64", ...folders("/usr/lib")]) {
    const file = join(folder, "faketime/libfaketime.so.1");
    if (existsSync(file)) return file;
  }
  return undefined;
}
function folders(parent: string): string[] {
  try {
    return readdirSync(parent)
      .filter((name) => name.includes("-linux-"))
      .map((name) => join(parent, name));
  } catch {
    return [];
  }
}

/** For tap's `skip`. Where CI is set its absence is an error. */
export function needsFaketime(): string | false {
  if (library() !== undefined) return false;
  const reason = "needs libfaketime, not installed here. Run: apt-get install libfaketime";
  if (process.env["CI"]) throw new Error(reason);
  return reason;
}

export class SetClock {
  readonly #file: string;
  /** For the program. */
  readonly env: Record<string, string>;

  constructor(t: Teardown) {
    this.#file = join(tempDir(t, "set-clock"), "offset");
    this.set(0);
    this.env = {
      LD_PRELOAD: library() ?? "",
      FAKETIME_TIMESTAMP_FILE: this.#file,
      FAKETIME_NO_CACHE: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
      DONT_FAKE_MONOTONIC: "1",
      NO_FAKE_STAT: "1",
    };
  }

  /** Off the machine's own by this, from the program's next look at it. */
  set(byMs: number): void {
    writeFileSync(`${this.#file}.new`, `${byMs < 0 ? "-" : "+"}${Math.abs(byMs / 1000)}\n`);
    renameSync(`${this.#file}.new`, this.#file);
  }
}
