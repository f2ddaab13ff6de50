// Brings what a container writes into two files, each byte once, over restarts of the agent and of the Engine. Beside
// the files stands a cursor: for each stream a message by its time, and where in the file that message begins. A later
// reader asks for the log from a little before, finds that message, and skips what the file has already behind it.
import { open, readFile, rename, type FileHandle } from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { dirname } from "node:path";
import { crc32 } from "node:zlib";
import { wait, type Clock } from "@sallyport/protocol";
import type { Logger } from "pino";
import { EngineRefusal, type DockerClient } from "./client.ts";
import { DamagedLog, FrameReader, secondsOf, type LogFrame } from "./log-frames.ts";

const STREAMS = ["stdout", "stderr"] as const;
type StreamName = (typeof STREAMS)[number];

const NEWLINE = Buffer.from("\n");

const RETRY_MS = 250;
const MAX_RETRY_MS = 5000;
/** Between the end of a followed log and the Engine's word that the container ended. */
const ENDING_MS = 50;
/** A followed log without a word is asked for anew: some Engines forget readers when a log turns over. */
const SILENCE_MS = 30_000;
/** The Engine cuts longer lines into messages of this. */
const PART_BYTES = 16 * 1024;
const SEEN = 1024;
/** Readings of a log to its end that the Engine answers with a fault, one after the other, before the rest is given up. */
const DAMAGED_TRIES = 5;
const CURSOR_EVERY_MS = 1000;
/** How far the Engine's wall clock may have been set back, unseen, without a loss: while followed, and while no agent ran. */
const LIVE_MARGIN_S = 10;
const RESTART_MARGIN_S = 600;

interface Mark {
  /** The first message of this time begins at `bytes` of the file; all before it are older. */
  at: string;
  bytes: number;
  /** The least time from there on: less than `at` when the clock was set back. */
  least: string;
}

/** Times, sizes and an id: nothing of what was written. */
interface Cursor {
  format: 1;
  container: string;
  streams: Record<StreamName, { from: number; mark: Mark | null }>;
}

interface Sink {
  name: StreamName;
  file: FileHandle;
  sizeBytes: number;
  /** Where in the file the output of this container begins. */
  from: number;
  mark: Mark | null;
  latest: string;
  /** Of the message that comes next in the present reading; null until the mark was met. */
  offset: number | null;
  /** Time of the message before, when it did not end its line. */
  unfinished: string | null;
  /** Time, length and sum of the last messages of the present reading, oldest first. */
  seen: Set<string>;
  lastBytes: number;
  pending: Buffer[];
  pendingBytes: number;
}

export interface LogFollowerOptions {
  client: DockerClient;
  clock: Clock;
  log: Logger;
  /** The container's name, and its id: a cursor of another container is not followed. */
  name: string;
  id: string;
  stdout: string;
  stderr: string;
  /** Null: it is gone. */
  isOver: () => Promise<boolean | null>;
}

export class LogFollower {
  readonly #o: LogFollowerOptions;
  readonly id: string;
  readonly #closing = new AbortController();
  #following: AbortController | null = null;
  #over = false;
  #savedAt = Number.NEGATIVE_INFINITY;
  #restarted = true;
  /** All is in the files, or the follower was closed. Never rejects. */
  readonly done: Promise<void>;

  constructor(options: LogFollowerOptions) {
    this.#o = options;
    this.id = options.id;
    this.done = this.#run().catch((error: unknown) => {
      if (!this.#closing.signal.aborted)
        options.log.error({ err: error, container: options.name }, "a container's output is not followed any more");
    });
  }

  /** It is known to have ended: does not wait for the Engine to end the followed log. */
  finish(): Promise<void> {
    this.#over = true;
    this.#following?.abort(new Error("the container has ended"));
    return this.done;
  }

  close(): Promise<void> {
    this.#closing.abort(new Error("the follower was closed"));
    return this.done;
  }

  async #run(): Promise<void> {
    const { log, clock, name } = this.#o;
    const sinks = await this.#opened();
    try {
      for (let failures = 0, damaged = 0; ;) {
        if (this.#closing.signal.aborted) return;
        let over: boolean | null = this.#over;
        try {
          over ||= await this.#o.isOver();
          if (over === null) return;
          await this.#read(sinks, !over);
          failures = damaged = 0;
          if (over) return await this.#end(sinks);
          if (!this.#over) await wait(clock, ENDING_MS, this.#closing.signal);
        } catch (error) {
          if (this.#closing.signal.aborted) return;
          // Removed between its end and the last reading: there is nothing more to come.
          if (this.#over && (await this.#o.isOver().catch(() => true)) === null) return;
          if (this.#over && failures === 0) {
            failures++;
            continue;
          }
          if ((error as NodeJS.ErrnoException).code === "EBADF") throw error;
          // An Engine that is away is waited for. One that is there and cannot read what it kept never will.
          if (over === true && (error instanceof DamagedLog || error instanceof EngineRefusal)) {
            if (++damaged >= DAMAGED_TRIES) {
              log.error(
                { err: error, container: name },
                "a part of a container's output was lost: the Engine cannot read its log",
              );
              return await this.#end(sinks);
            }
          } else damaged = 0;
          if (failures++ === 0)
            log.warn({ err: error, container: name }, "a container's output cannot be read for now");
          await wait(clock, Math.min(MAX_RETRY_MS, RETRY_MS * 2 ** Math.min(failures, 10)), this.#closing.signal);
        }
      }
    } finally {
      await this.#save(sinks).catch((error: unknown) => log.warn({ err: error }, "a log's cursor cannot be written"));
      for (const sink of sinks) await sink.file.close();
    }
  }

  async #end(sinks: Sink[]): Promise<void> {
    for (const sink of sinks) if (sink.unfinished !== null) this.#put(sink, NEWLINE);
    await this.#flush(sinks);
  }

  get #cursorPath(): string {
    return `${this.#o.stdout}.cursor`;
  }

  async #opened(): Promise<Sink[]> {
    for (let failures = 0; ;) {
      const sinks: Sink[] = [];
      try {
        await this.#open(sinks);
        return sinks;
      } catch (error) {
        for (const { file } of sinks) await file.close();
        if (!isFull(error)) throw error;
        await this.#space(error, failures++);
      }
    }
  }

  async #open(sinks: Sink[]): Promise<void> {
    const cursor = await this.#load();
    for (const name of STREAMS) {
      const file = await open(this.#o[name], "a", 0o600);
      const sizeBytes = (await file.stat()).size;
      const from = Math.min(cursor?.streams[name].from ?? sizeBytes, sizeBytes);
      const mark = cursor?.streams[name].mark ?? null;
      sinks.push({
        name,
        file,
        sizeBytes,
        from,
        // A file that is shorter than was noted lost its end with the machine.
        mark: mark !== null && mark.bytes <= sizeBytes ? mark : null,
        latest: "",
        offset: null,
        unfinished: null,
        seen: new Set(),
        lastBytes: 0,
        pending: [],
        pendingBytes: 0,
      });
    }
    // Before the first byte: whoever finds bytes and no cursor would take them for another's.
    if (cursor === null) await this.#save(sinks, true);
  }

  async #load(): Promise<Cursor | null> {
    try {
      const cursor = JSON.parse(await readFile(this.#cursorPath, "utf8")) as Cursor;
      return cursor.format === 1 && cursor.container === this.#o.id ? cursor : null;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT")
        this.#o.log.warn({ err: error }, "a log's cursor is not readable");
      return null;
    }
  }

  async #save(sinks: Sink[], sync = false): Promise<void> {
    const [stdout, stderr] = sinks as [Sink, Sink];
    const of = ({ from, mark }: Sink): { from: number; mark: Mark | null } => ({ from, mark });
    const cursor: Cursor = { format: 1, container: this.#o.id, streams: { stdout: of(stdout), stderr: of(stderr) } };
    const part = `${this.#cursorPath}.part`;
    const file = await open(part, "w", 0o600);
    try {
      await file.writeFile(JSON.stringify(cursor));
      if (sync) await file.sync();
    } finally {
      await file.close();
    }
    await rename(part, this.#cursorPath);
    if (sync) {
      const folder = await open(dirname(part), "r");
      await folder.sync().finally(() => folder.close());
    }
    this.#savedAt = this.#o.clock.monotonic();
  }

  /** One answer of the Engine to its end. */
  async #read(sinks: Sink[], follow: boolean): Promise<void> {
    const { client, clock, name } = this.#o;
    let since = Number.POSITIVE_INFINITY;
    for (const sink of sinks) {
      sink.pending = [];
      sink.pendingBytes = 0;
      sink.unfinished = null;
      sink.seen.clear();
      sink.latest = sink.mark?.at ?? "";
      if (sink.mark === null) {
        sink.offset = sink.from;
        if (sink.sizeBytes > sink.from) since = 0;
      } else {
        sink.offset = null;
        const margin = this.#restarted ? RESTART_MARGIN_S : LIVE_MARGIN_S;
        since = Math.min(since, secondsOf(sink.mark.least) - margin);
      }
    }
    const stop = new AbortController();
    this.#following = follow ? stop : null;
    if (follow && this.#over) return;
    const query = {
      follow: follow ? 1 : 0,
      stdout: 1,
      stderr: 1,
      timestamps: 1,
      since: Number.isFinite(since) ? Math.max(0, since) : 0,
    };
    const signal = AbortSignal.any([stop.signal, this.#closing.signal]);
    const silence = this.#quiet(() => stop.abort(new Error("silence")));
    let answer: IncomingMessage | undefined;
    try {
      answer = await client.stream("GET", `/containers/${name}/logs`, { query, signal, timeoutMs: null });
      const frames = new FrameReader();
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        silence.heard();
        try {
          for (const frame of frames.push(chunk)) this.#take(sinks[frame.stream === "stdout" ? 0 : 1]!, frame);
        } finally {
          await this.#flush(sinks);
        }
        if (clock.monotonic() - this.#savedAt > CURSOR_EVERY_MS) await this.#save(sinks);
      }
      this.#restarted = false;
    } catch (error) {
      // Silence or the end ended it: what is read again is skipped. Only one that is not followed has an end to come to.
      if (!follow || !stop.signal.aborted || this.#closing.signal.aborted) throw error;
      this.#restarted = false;
    } finally {
      silence.end();
      answer?.destroy();
      this.#following = null;
    }
  }

  #quiet(then: () => void): { heard(): void; end(): void } {
    const { clock } = this.#o;
    let timer = clock.after(SILENCE_MS, then);
    return {
      heard() {
        timer.cancel();
        timer = clock.after(SILENCE_MS, then);
      },
      end: () => timer.cancel(),
    };
  }

  #take(sink: Sink, { at, bytes }: LogFrame): void {
    if (sink.offset === null) {
      const { mark } = sink;
      if (mark === null || at < mark.at) return;
      if (at === mark.at) sink.offset = mark.bytes;
      else {
        // The log turned over while nobody read it.
        sink.offset = sink.sizeBytes;
        sink.mark = null;
        this.#o.log.warn(
          { container: this.#o.name, stream: sink.name },
          "a part of a container's output was lost: its log turned over unread",
        );
      }
    }
    if (isRepeated(sink, at, bytes)) return;
    // Parts of one long line have one time. Engines of version 20 leave out the newline behind the last.
    if (sink.unfinished !== null && sink.unfinished !== at) this.#put(sink, NEWLINE);
    if (at > sink.latest) {
      sink.latest = at;
      sink.mark = { at, bytes: sink.offset, least: at };
    } else if (sink.mark !== null && at < sink.mark.least) sink.mark = { ...sink.mark, least: at };
    this.#put(sink, bytes);
    sink.unfinished = bytes.at(-1) === NEWLINE[0] ? null : at;
  }

  /** What the file has not yet. */
  #put(sink: Sink, bytes: Buffer): void {
    const offset = sink.offset ?? sink.sizeBytes;
    const known = Math.max(0, Math.min(bytes.length, sink.sizeBytes + sink.pendingBytes - offset));
    if (known < bytes.length) {
      sink.pending.push(bytes.subarray(known));
      sink.pendingBytes += bytes.length - known;
    }
    sink.offset = offset + bytes.length;
  }

  /** A disk that is full for now: the log waits at the Engine. */
  async #flush(sinks: Sink[]): Promise<void> {
    for (const sink of sinks) {
      if (sink.pending.length === 0) continue;
      const bytes = sink.pending.length === 1 ? sink.pending[0]! : Buffer.concat(sink.pending);
      sink.pending = [];
      sink.pendingBytes = 0;
      for (let at = 0, failures = 0; at < bytes.length;) {
        try {
          const { bytesWritten } = await sink.file.write(bytes, at);
          at += bytesWritten;
          sink.sizeBytes += bytesWritten;
        } catch (error) {
          if (!isFull(error)) throw error;
          await this.#space(error, failures++);
        }
      }
    }
  }

  async #space(error: unknown, failures: number): Promise<void> {
    if (failures === 0) this.#o.log.warn({ err: error }, "no space for a container's output: it waits at the Engine");
    await wait(this.#o.clock, MAX_RETRY_MS, this.#closing.signal);
  }
}

const isFull = (error: unknown): boolean => ["ENOSPC", "EDQUOT"].includes((error as NodeJS.ErrnoException).code ?? "");

/**
 * When its log turns over, an Engine of version 20 tells those who follow it the last messages once more. A message that
 * is not newer and was there just before is one of these; the parts of a long line, of one time all, are not.
 */
function isRepeated(sink: Sink, at: string, bytes: Buffer): boolean {
  const key = `${at} ${bytes.length} ${crc32(bytes)}`;
  const continues = sink.unfinished === at && sink.lastBytes === PART_BYTES;
  if (at <= sink.latest && !continues && sink.seen.has(key)) return true;
  sink.lastBytes = bytes.length;
  sink.seen.add(key);
  if (sink.seen.size > SEEN) {
    const [oldest] = sink.seen;
    sink.seen.delete(oldest!);
  }
  return false;
}
