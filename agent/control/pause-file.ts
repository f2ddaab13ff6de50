// The pause of the intake on disk: it holds over a restart. A file that cannot be read counts as a pause, because
// somebody meant one.
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { ConnectorError } from "@sallyport/protocol";
import { z } from "zod";

const pauseSchema = z.strictObject({ reason: z.string(), until: z.int().nullable() });
export type StoredPause = z.infer<typeof pauseSchema>;

export class PauseFile {
  readonly #path: string;

  constructor(stateDir: string) {
    this.#path = join(stateDir, "pause.json");
  }

  read(): StoredPause | null {
    let text: string;
    try {
      text = readFileSync(this.#path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
      return {
        reason: `The pause in ${this.#path} cannot be read (${(error as NodeJS.ErrnoException).code}).`,
        until: null,
      };
    }
    try {
      return pauseSchema.parse(JSON.parse(text));
    } catch {
      return { reason: `The pause in ${this.#path} is damaged.`, until: null };
    }
  }

  /** Null removes it. Throws STORAGE_FULL and the like: then nothing has changed. */
  write(pause: StoredPause | null): void {
    try {
      if (pause === null) rmSync(this.#path, { force: true });
      else {
        const aside = `${this.#path}.new`;
        const file = openSync(aside, "w", 0o600);
        try {
          writeSync(file, JSON.stringify(pause));
          fsyncSync(file);
        } finally {
          closeSync(file);
        }
        renameSync(aside, this.#path);
      }
      const folder = openSync(dirname(this.#path), "r");
      try {
        fsyncSync(folder);
      } finally {
        closeSync(folder);
      }
    } catch (cause) {
      throw new ConnectorError(
        "STORAGE_FULL",
        `The pause cannot be written to ${this.#path} (${(cause as NodeJS.ErrnoException).code}).`,
        {
          fix: "Mend the disk that holds the agent's state directory. `stop --all` works without it.",
          cause,
        },
      );
    }
  }
}
