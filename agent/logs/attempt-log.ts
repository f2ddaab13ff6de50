// The log of one attempt while it is written. The step itself appends to two raw files, with or without an agent; this
// follows them, wakes only when they grow, and writes records. After a crash it goes on behind the last whole record: no
// line is lost or doubled. The raw files hold what was not redacted: they are the user's alone, their read part is given
// back to the disk where the file system can, and they are removed at the end.
import { execFile } from "node:child_process";
import { watch, type FSWatcher } from "node:fs";
import { mkdir, open, rename, rm, writeFile, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, textBody, toConnectorError, wait, type Clock, type LogRecord } from "@sallyport/protocol";
import type { Redactor } from "../redaction/redactor.ts";
import { LineSplitter, type Piece } from "./line-splitter.ts";
import { SegmentWriter, type Cursors } from "./segments.ts";

const CHUNK_BYTES = 64 * 1024;
/** Where the kernel does not tell of changes (some network file systems), or forgets to. */
const POLL_MS = 1000;
/** An unfinished line is shown after this much silence. */
const UNFINISHED_MS = 500;
/** Read raw bytes are given back in portions of this. */
const GIVE_BACK_BYTES = 16 * 1024 * 1024;
const WRITE_TRIES = 30;
const WRITE_RETRY_MS = 1000;

const STREAMS = ["stdout", "stderr"] as const;
type StreamName = (typeof STREAMS)[number];

interface Source {
  name: StreamName;
  path: string;
  file: FileHandle;
  splitter: LineSplitter;
  /** Monotonic, of the last growth. */
  grewAt: number;
  givenBack: number;
}

export interface AttemptLogOptions {
  folder: string;
  redactor: Redactor;
  clock: Clock;
  capBytes: number;
  onChange: () => void;
}

export const rawFile = (folder: string, stream: StreamName): string => join(folder, "raw", stream);

export class AttemptLog {
  /** Give these to the engine. */
  readonly stdout: string;
  readonly stderr: string;
  readonly #options: AttemptLogOptions;
  readonly #writer: SegmentWriter;
  #cursors: Cursors;
  #seq: number;
  #appending: Promise<void> = Promise.resolve();
  #sources: Source[] = [];
  #state: "idle" | "following" | "finishing" | "closed" = "idle";
  #withheld = false;
  #loop: Promise<void> | null = null;
  #wake: () => void = () => undefined;
  readonly #stop = new AbortController();
  static #canGiveBack = process.platform === "linux";

  private constructor(options: AttemptLogOptions, writer: SegmentWriter) {
    this.#options = options;
    this.#writer = writer;
    this.#cursors = writer.cursors;
    this.#seq = writer.lastSeq;
    this.stdout = rawFile(options.folder, "stdout");
    this.stderr = rawFile(options.folder, "stderr");
  }

  static async open(options: AttemptLogOptions): Promise<AttemptLog> {
    await mkdir(join(options.folder, "raw"), { recursive: true, mode: 0o700 });
    return new AttemptLog(options, await SegmentWriter.open(options.folder, options.capBytes));
  }

  /** Of the last record that is on disk. */
  get lastSeq(): number {
    return this.#writer.lastSeq;
  }

  /** A word of the agent about the step. */
  async system(text: string): Promise<void> {
    await this.#append((seq, ts) => ({ seq, ts, stream: "system", body: textBody(this.#options.redactor.text(text)) }));
  }

  /** Begins to read. All secrets that the step was given must be known to the redactor. */
  async follow(): Promise<void> {
    if (this.#state !== "idle") return;
    this.#state = "following";
    for (const name of STREAMS) {
      const path = rawFile(this.#options.folder, name);
      const file = await open(path, "a+", 0o600);
      this.#sources.push({
        name,
        path,
        file,
        splitter: new LineSplitter(this.#options.redactor, this.#cursors[name]),
        grewAt: this.#options.clock.monotonic(),
        givenBack: 0,
      });
    }
    this.#loop = this.#run();
    // Heard of in finish() or close().
    this.#loop.catch(() => undefined);
  }

  /** The rest of the output is not readable by anybody: a gap says why. */
  async withhold(reason: string): Promise<void> {
    this.#withheld = true;
    await this.#append((seq, ts) => ({ gap: true, from: seq, to: seq, ts, reason }));
  }

  /** The step has ended: reads what is left, seals. Returns the last number. */
  async finish(): Promise<number> {
    if (this.#state === "idle" && !this.#withheld) await this.follow();
    if (this.#state === "following") this.#state = "finishing";
    this.#wake();
    await this.#loop;
    await this.#appending;
    await this.#release();
    await this.#writer.close();
    const { folder } = this.#options;
    await writeFile(
      join(folder, "end.part"),
      JSON.stringify({ lastSeq: this.lastSeq, at: this.#options.clock.now() }),
      { mode: 0o600 },
    );
    await rename(join(folder, "end.part"), join(folder, "end.json"));
    await rm(join(folder, "raw"), { recursive: true, force: true });
    this.#options.onChange();
    return this.lastSeq;
  }

  /** Stops reading; a later one goes on. */
  async close(): Promise<void> {
    this.#state = "closed";
    this.#stop.abort(new ConnectorError("CANCELLED", "The log was closed."));
    this.#wake();
    await this.#loop?.catch(() => undefined);
    await this.#appending.catch(() => undefined);
    await this.#release();
    await this.#writer.close().catch(() => undefined);
  }

  async #release(): Promise<void> {
    const sources = this.#sources;
    this.#sources = [];
    for (const source of sources) await source.file.close();
  }

  async #run(): Promise<void> {
    let watcher: FSWatcher | null = null;
    let woken = false;
    let resume: (() => void) | null = null;
    this.#wake = () => {
      woken = true;
      resume?.();
    };
    try {
      watcher = watch(join(this.#options.folder, "raw"), { persistent: false }, () => this.#wake());
      watcher.on("error", () => watcher?.close());
    } catch {
      // no watches left, or none on this file system: the poll remains
    }
    try {
      for (;;) {
        if (this.#state === "closed") return;
        woken = false;
        // Read before the state is looked at: what was written before `finish` is in the last round.
        const last = this.#state === "finishing";
        let grew = false;
        for (const source of this.#sources) grew = (await this.#readSome(source)) || grew;
        if (grew) continue;
        if (last) {
          for (const source of this.#sources) await this.#write(source, source.splitter.end());
          return;
        }
        const now = this.#options.clock.monotonic();
        let pauseMs = POLL_MS;
        for (const source of this.#sources) {
          if (!source.splitter.hasPending) continue;
          const left = source.grewAt + UNFINISHED_MS - now;
          if (left <= 0) await this.#write(source, source.splitter.idle());
          else pauseMs = Math.min(pauseMs, left);
        }
        await new Promise<void>((resolve) => {
          if (woken || this.#state !== "following") return resolve();
          const timer = this.#options.clock.after(pauseMs, resolve, { keepAlive: true });
          resume = () => {
            timer.cancel();
            resolve();
          };
        });
        resume = null;
      }
    } finally {
      watcher?.close();
    }
  }

  async #readSome(source: Source): Promise<boolean> {
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
    const { bytesRead } = await source.file.read(chunk, 0, chunk.length, source.splitter.offset);
    if (bytesRead === 0) return false;
    source.grewAt = this.#options.clock.monotonic();
    if (this.#withheld) return false;
    await this.#write(source, source.splitter.push(chunk.subarray(0, bytesRead)));
    this.#giveBack(source);
    return true;
  }

  async #write(source: Source, pieces: Piece[]): Promise<void> {
    if (pieces.length === 0) return;
    const ts = this.#options.clock.now();
    const records = pieces.map((piece) => {
      this.#cursors = { ...this.#cursors, [source.name]: piece.cursor };
      const record: LogRecord = {
        seq: ++this.#seq,
        ts,
        stream: source.name,
        body: textBody(piece.text),
        ...(piece.continued ? { continued: true } : {}),
      };
      return { record, cursors: this.#cursors };
    });
    await this.#enqueue(records);
  }

  async #append(make: (seq: number, ts: number) => LogRecord): Promise<void> {
    await this.#enqueue([{ record: make(++this.#seq, this.#options.clock.now()), cursors: this.#cursors }]);
  }

  #enqueue(records: { record: LogRecord; cursors: Cursors }[]): Promise<void> {
    this.#appending = this.#appending.then(async () => {
      for (let tries = 1; ; tries++) {
        try {
          await this.#writer.append(records);
          break;
        } catch (error) {
          // A full disk: the step goes on, its raw output waits.
          if (tries === WRITE_TRIES || this.#state === "closed") throw toConnectorError(error);
          await wait(this.#options.clock, WRITE_RETRY_MS, this.#stop.signal);
        }
      }
      this.#options.onChange();
    });
    return this.#appending;
  }

  /** Frees the blocks of what was read and written; offsets stay, so neither the step nor a successor notices. */
  #giveBack(source: Source): void {
    const done = this.#writer.cursors[source.name].from;
    if (!AttemptLog.#canGiveBack || done - source.givenBack < GIVE_BACK_BYTES) return;
    const length = done - source.givenBack;
    const args = ["--punch-hole", "--offset", String(source.givenBack), "--length", String(length), source.path];
    source.givenBack = done;
    execFile("fallocate", args, { env: { PATH: "/usr/local/bin:/usr/bin:/bin" } }, (error) => {
      if (error !== null) AttemptLog.#canGiveBack = false;
    });
  }
}
