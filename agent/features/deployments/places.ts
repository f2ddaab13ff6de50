// Where replicas' work folders are: `<state>/serving/<short>`, the user's alone. The name is short because a socket's
// address has room for 107 bytes; where the state folder's own path is too long for that, the socket is reached by way of
// an open folder.
import { createHash } from "node:crypto";
import { chmodSync, closeSync, mkdirSync, openSync, readdirSync, rmSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { WorkName } from "../../engines/engine.ts";

/** Of the longest address that every system takes, less a little. */
const MAX_SOCKET_PATH = 100;
export const SOCKET = "s.sock";
export const MODEL = "model.onnx";

export class Places {
  readonly #root: string;
  #open: number | null = null;

  constructor(stateDir: string) {
    this.#root = join(stateDir, "serving");
  }

  folder(work: WorkName): string {
    return join(this.#root, short(work));
  }

  /** An empty folder for a start. */
  async make(work: WorkName): Promise<string> {
    const folder = this.folder(work);
    await rm(folder, { recursive: true, force: true });
    this.#makeRoot();
    await mkdir(folder, { mode: 0o700 });
    for (const part of ["home", "tmp"]) await mkdir(join(folder, part), { mode: 0o700 });
    return folder;
  }

  async remove(work: WorkName): Promise<void> {
    await rm(this.folder(work), { recursive: true, force: true });
  }

  /** Removes all folders but those of these; asked before each, since new ones come meanwhile. */
  async sweep(keep: () => readonly WorkName[]): Promise<void> {
    this.#makeRoot();
    for (const name of readdirSync(this.#root))
      if (!keep().map(short).includes(name)) rmSync(join(this.#root, name), { recursive: true, force: true });
  }

  /** Absolute, as this process reaches it. */
  socket(work: WorkName): string {
    const path = join(this.folder(work), SOCKET);
    if (Buffer.byteLength(path) <= MAX_SOCKET_PATH) return path;
    this.#makeRoot();
    this.#open ??= openSync(this.#root, "r");
    return `/proc/self/fd/${this.#open}/${short(work)}/${SOCKET}`;
  }

  close(): void {
    if (this.#open !== null) closeSync(this.#open);
    this.#open = null;
  }

  #makeRoot(): void {
    mkdirSync(this.#root, { recursive: true, mode: 0o700 });
    chmodSync(this.#root, 0o700);
  }
}

const short = (work: WorkName): string => createHash("sha256").update(work).digest("hex").slice(0, 16);
