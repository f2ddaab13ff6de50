// Folders of a store that are asked about again and again, kept open for a moment: what lies in one is then looked at by
// one call instead of three. Only for folders that lie where they are named, with no link on the way, and only where the
// kernel tells at once where an opened folder is (/proc/self/fd): one that was moved, removed or exchanged is let go of.
import { close, constants, lstat, open, readlinkSync, type BigIntStats } from "node:fs";
import { promisify } from "node:util";

const openFd = promisify(open);
const lookAt = promisify(lstat);
/** Open at once, and remembered as asked about. */
const MOST = 64;

interface Folder {
  readonly fd: number;
  readonly full: string;
  /** Looks that are under way: its number may not become another file's meanwhile. */
  looks: number;
  gone: boolean;
}

export class KeptFolders {
  readonly #open = new Map<string, Folder>();
  readonly #opening = new Set<string>();
  readonly #asked = new Set<string>();

  /**
   * What `name` is in the folder `full`. Null: the folder is not held, or there is nothing that could be told by this
   * alone (a link, nothing at all); it is then to be looked at the long way.
   */
  async look(full: string, name: string): Promise<BigIntStats | null> {
    const folder = this.#open.get(full);
    if (folder === undefined) return null;
    if (placeOf(folder.fd) !== full) {
      this.#drop(folder);
      return null;
    }
    folder.looks++;
    try {
      const info = await lookAt(`/proc/self/fd/${folder.fd}/${name}`, { bigint: true });
      return info.isFile() || info.isDirectory() ? info : null;
    } catch {
      return null;
    } finally {
      folder.looks--;
      this.#closeIfOver(folder);
    }
  }

  /** Something in the folder was looked at the long way. The second time within `forMs` it is opened, for as long. */
  asked(full: string, forMs: number): void {
    if (this.#opening.has(full) || this.#open.size + this.#opening.size >= MOST) return;
    if (!this.#asked.has(full)) {
      if (this.#asked.size >= MOST) this.#asked.clear();
      this.#asked.add(full);
      return;
    }
    this.#asked.delete(full);
    this.#opening.add(full);
    openFd(full, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NONBLOCK)
      .then((fd) => {
        const folder: Folder = { fd, full, looks: 0, gone: false };
        if (placeOf(fd) !== full || this.#open.has(full)) return this.#drop(folder);
        this.#open.set(full, folder);
        setTimeout(() => this.#drop(folder), forMs).unref();
      })
      .catch(() => {})
      .finally(() => this.#opening.delete(full));
  }

  #drop(folder: Folder): void {
    if (folder.gone) return;
    folder.gone = true;
    if (this.#open.get(folder.full) === folder) this.#open.delete(folder.full);
    this.#closeIfOver(folder);
  }

  #closeIfOver(folder: Folder): void {
    if (folder.gone && folder.looks === 0) close(folder.fd, () => {});
  }
}

/** Where an opened file or folder lies now: the kernel's own note, which asks no disk and no server. */
export const placeOf = (fd: number): string => readlinkSync(`/proc/self/fd/${fd}`);
