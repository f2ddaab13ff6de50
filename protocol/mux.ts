// The multiplexer: streams over one authenticated transport. It decides what leaves next and keeps both limits; it knows
// no heads, no commands, no handshake.
//
// Order of sending: control, then interactive, then bulk, strictly; within a lane one frame per stream in turn. DATA is
// held by two limits: the stream's credit (granted by its reader) and the link's in-flight window (steered by delay).
import {
  FLAG,
  FRAME,
  FRAME_NAMES,
  MAX_DATA_BYTES,
  MAX_HEAD_BYTES,
  ackSchema,
  creditSchema,
  endSchema,
  failureJson,
  failureSchema,
  pingSchema,
  type Failure,
  type Frame,
  type FrameType,
} from "./frames.ts";
import { parseControl, parseJson, type FrameReader, type FrameWriter } from "./codec.ts";
import type { BulkKeys } from "./checksum.ts";
import type { Clock, Timer } from "./clock.ts";
import { ConnectorError, toConnectorError } from "./errors.ts";
import { InFlight } from "./inflight.ts";
import { MuxStream, type StreamHost } from "./mux-stream.ts";
import type { Lane, LinkSession, LinkStream, OpenOptions } from "./stream.ts";
import type { Transport } from "./transport.ts";

/** A beat this often from both ends. */
export const BEAT_MS = 5_000;
/** Silence of this length is a dead link. */
export const DEAD_MS = 12_000;
/** Each beat the shortest round trip is believed less by this: a path may have become longer. */
const RTT_FORGOTTEN = 1.1;
/** A timer that fires this much late means that this process stood still, not the link. */
const STALL_MS = 2_000;

/** The transport's own buffer is kept this small, so that order is decided here and not there. */
const HIGH_WATER_BYTES = 256 * 1024;
/** Control frames pass the high water, but a peer that makes us answer without reading is cut off here. */
const CONTROL_CEILING_BYTES = 16 * 1024 * 1024;
/** Interactive DATA may exceed a full in-flight window by this much, so that it never waits for bulk. */
const INTERACTIVE_RESERVE_BYTES = 256 * 1024;
/**
 * DATA received and not acknowledged yet: an ACK leaves at so many bytes, at fewer when the last one is some time ago, or
 * when nothing more came. On a fast path so a frame in eight has one; on a slow one each, which its controller needs.
 */
const ACK_BYTES = 64 * 1024;
const ACK_MOST_BYTES = 512 * 1024;
const ACK_APART_MS = 2;
const ACK_MS = 2;
/** Closing: how long the goodbye may take to leave. */
const CLOSE_MS = 1_000;

export interface StreamWindows {
  /** Bytes of one stream that its receiver is ready to hold unread. */
  readonly interactive: number;
  readonly bulk: number;
}
export const DEFAULT_WINDOWS: StreamWindows = { interactive: 256 * 1024, bulk: 1024 * 1024 };
/** What the windows of a link's streams may grow by, all together, while their readers keep up. */
const SPARE_WINDOW_BYTES = 32 * 1024 * 1024;
/** Streams that one side lets the other have open at a time. */
export const DEFAULT_MAX_STREAMS = 256;

export interface MuxOptions {
  readonly id: string;
  readonly transport: Transport;
  readonly clock: Clock;
  /** The agent opens odd streams, the cloud even ones. */
  readonly side: "agent" | "cloud";
  readonly writer: FrameWriter;
  readonly reader: FrameReader;
  /** What this side grants, and what the peer granted in its hello. */
  readonly windows: StreamWindows;
  readonly peerWindows: StreamWindows;
  readonly maxStreams: number;
  readonly peerMaxStreams: number;
  readonly checksums: boolean;
  /** Absent or null: bulk has a CRC-32 like the rest. */
  readonly bulkKeys?: BulkKeys | null;
  /** A stream that the peer opened. Not called while draining. */
  readonly onStream: (stream: LinkStream) => void;
  /** True: streams that the peer opens live as long as the session; a drain does not wait for them. */
  readonly peerBackground?: boolean;
  /** Silence of this length is a dead link; beats keep pace with it. Absent: 12 s. */
  readonly deadMs?: number;
  /** Each beat's round trip in ms. Metrics listen here. */
  readonly onRoundTrip?: (ms: number) => void;
  /** The peer drains: it takes no new streams. */
  readonly onGoAway?: (reason: ConnectorError, retryAfterMs: number | null) => void;
}

/** DATA payloads are cut to an eighth of the in-flight window, within these. */
const FRAME_MIN_BYTES = 16 * 1024;
const FRAME_MAX_BYTES: Readonly<Record<Lane, number>> = { interactive: 64 * 1024, bulk: MAX_DATA_BYTES };

/** One lane in one direction since the session began. OPEN counts as interactive, all else but DATA as control; bytes are payloads. */
export interface LaneCount {
  frames: number;
  bytes: number;
}
export type LaneName = "control" | Lane;
const laneCounts = (): Record<LaneName, LaneCount> => ({
  control: { frames: 0, bytes: 0 },
  interactive: { frames: 0, bytes: 0 },
  bulk: { frames: 0, bytes: 0 },
});
/** For metrics: what a session has moved, and what is on its way now. */
export interface MuxFigures {
  readonly sent: Readonly<Record<LaneName, Readonly<LaneCount>>>;
  readonly received: Readonly<Record<LaneName, Readonly<LaneCount>>>;
  /** DATA that was sent and is not acknowledged yet. */
  readonly inFlightBytes: number;
  /** DATA that its writers handed over and that has not left. */
  readonly queuedBytes: Readonly<Record<Lane, number>>;
  readonly streams: number;
}

interface Outgoing {
  readonly type: FrameType;
  readonly flags: number;
  readonly stream: number;
  readonly json: string;
}

const violation = (what: string): ConnectorError =>
  new ConnectorError("PROTOCOL_ERROR", `The peer broke the protocol: ${what}.`);

const linkLost = (reason: ConnectorError): ConnectorError =>
  new ConnectorError("LINK_LOST", `The link between agent and control plane was lost: ${reason.message}`, {
    fix: "Try again; a read goes on from where it stopped.",
    details: { reason: reason.code },
    cause: reason,
  });

export class Mux implements LinkSession, StreamHost {
  readonly id: string;
  readonly closed: Promise<ConnectorError>;

  readonly #options: MuxOptions;
  readonly #transport: Transport;
  readonly #clock: Clock;
  readonly #writer: FrameWriter;
  readonly #reader: FrameReader;
  readonly #inFlight: InFlight;

  readonly #streams = new Map<number, MuxStream>();
  /** How many of them a drain waits for. */
  #awaited = 0;
  #nextId: number;
  #highestPeerId = 0;
  #ownStreams = 0;
  #peerStreams = 0;

  #control: Outgoing[] = [];
  #heads: Outgoing[] = [];
  #interactive: MuxStream[] = [];
  #bulk: MuxStream[] = [];
  #creditDue: MuxStream[] = [];
  #flushing = false;
  #scheduled = false;
  #waitsForDrain = false;
  #spareWindowBytes = SPARE_WINDOW_BYTES;

  readonly #sent = laneCounts();
  readonly #received = laneCounts();
  #receivedBytes = 0;
  #unackedBytes = 0;
  #newestEchoUs = 0;
  #newestAtMs = 0;
  #ackedAtMs = 0;
  #ackTimer: Timer | null = null;

  readonly #deadMs: number;
  readonly #beatMs: number;
  #lastSeenMs: number;
  #beatTimer: Timer | null = null;
  #deadTimer: Timer | null = null;
  #pings: { n: number; atMs: number; resolve: ((rttMs: number) => void) | null }[] = [];
  #pingNumber = 0;
  #rttMs: number | null = null;
  /** The least of late, since a busy end answers later than the path takes. */
  #pathRttMs: number | null = null;

  #draining = false;
  #peerDraining: ConnectorError | null = null;
  #closedBy: ConnectorError | null = null;
  #resolveClosed!: (reason: ConnectorError) => void;
  #idleWaiters: (() => void)[] = [];

  constructor(options: MuxOptions) {
    this.#options = options;
    this.id = options.id;
    this.#transport = options.transport;
    this.#clock = options.clock;
    this.#writer = options.writer;
    this.#reader = options.reader;
    this.#inFlight = new InFlight(options.clock);
    this.#nextId = options.side === "agent" ? 1 : 2;
    this.#deadMs = options.deadMs ?? DEAD_MS;
    this.#beatMs = Math.min(BEAT_MS, (this.#deadMs * BEAT_MS) / DEAD_MS);
    this.#lastSeenMs = this.#clock.monotonic();
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#transport.onClose((cause) => this.#over(new ConnectorError("LINK_LOST", "The connection broke.", { cause })));
    this.#transport.onDrain(() => {
      this.#waitsForDrain = false;
      this.#schedule();
    });
    this.#armBeat();
    this.#armDeath(this.#deadMs);
    this.#transport.onMessage((bytes, more) => this.#receive(bytes, more === true), { inParts: true });
  }

  get rttMs(): number | null {
    return this.#rttMs;
  }
  /** Monotonic ms of the last message of the peer. */
  get lastSeenMs(): number {
    return this.#lastSeenMs;
  }
  get openStreams(): number {
    return this.#streams.size;
  }
  get isClosed(): boolean {
    return this.#closedBy !== null;
  }
  /** The counters themselves, to be read at once, and sums over the open streams: for a scrape, not for each frame. */
  figures(): MuxFigures {
    const queuedBytes = { interactive: 0, bulk: 0 };
    for (const stream of this.#streams.values()) queuedBytes[stream.lane] += stream.queuedBytes;
    return {
      sent: this.#sent,
      received: this.#received,
      inFlightBytes: this.#inFlight.inFlightBytes,
      queuedBytes,
      streams: this.#streams.size,
    };
  }
  /** For metrics and tests. */
  get flow(): { windowBytes: number; inFlightBytes: number; baseMs: number | null } {
    return {
      windowBytes: this.#inFlight.windowBytes,
      inFlightBytes: this.#inFlight.inFlightBytes,
      baseMs: this.#inFlight.baseMs,
    };
  }

  open(head: unknown, options: OpenOptions): LinkStream {
    if (this.#closedBy !== null) throw linkLost(this.#closedBy);
    if (this.#peerDraining !== null) throw this.#peerDraining;
    if (this.#ownStreams >= this.#options.peerMaxStreams) {
      throw new ConnectorError(
        "STREAM_REFUSED",
        `The link has ${this.#ownStreams} streams open, the most that the other end takes.`,
        {
          fix: "Try again when some of the work in progress has ended.",
        },
      );
    }
    if (options.signal?.aborted === true) throw toConnectorError(options.signal.reason);
    const id = this.#nextId;
    const fin = options.end === true;
    const stream = new MuxStream(this, id, options.lane, head, {
      opened: true,
      fin,
      sendLimit: this.#options.peerWindows[options.lane],
      windowBytes: this.#options.windows[options.lane],
    });
    this.#sendHead(id, (fin ? FLAG.fin : 0) | (options.lane === "bulk" ? FLAG.bulk : 0), head);
    this.#nextId += 2;
    this.#ownStreams++;
    this.#streams.set(id, stream);
    if (options.background !== true) this.#await(stream);
    const { signal } = options;
    if (signal !== undefined) {
      const onAbort = () => stream.reset(toConnectorError(signal.reason));
      signal.addEventListener("abort", onAbort, { once: true });
      stream.release = () => signal.removeEventListener("abort", onAbort);
    }
    return stream;
  }

  /** One round trip in ms, measured now. Stays pending when the session ends first: race it with `closed`. */
  ping(): Promise<number> {
    return new Promise((resolve) => this.#sendPing(resolve));
  }

  /** Says that this side goes away, and takes what the peer opened before it heard of it. */
  farewell(reason: ConnectorError): void {
    this.#sendFailure(FRAME.goAway, 0, reason.toBody());
  }

  /** Takes no new streams; resolves when those open, background ones aside, have ended, or the session is over. */
  drain(reason: ConnectorError, retryAfterMs?: number): Promise<void> {
    if (!this.#draining && this.#closedBy === null) {
      this.#draining = true;
      this.#sendFailure(FRAME.goAway, 0, {
        ...reason.toBody(),
        ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      });
    }
    if (this.#awaited === 0 || this.#closedBy !== null) return Promise.resolve();
    return new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  /** Tells the peer why and ends the session now. */
  close(reason: ConnectorError): void {
    if (this.#closedBy !== null) return;
    this.#sendFailure(FRAME.reset, 0, reason.toBody());
    this.#flush();
    this.#over(reason);
    this.#transport.close();
    this.#clock.after(CLOSE_MS, () => this.#transport.destroy());
  }

  // What follows is for its streams; an object of closures for them would be half a KiB of an idle link.

  get checksums(): boolean {
    return this.#options.checksums;
  }
  get bulkKeys(): BulkKeys | null {
    return this.#options.bulkKeys ?? null;
  }
  sendable(stream: MuxStream): void {
    this.#enqueue(stream);
  }
  creditDue(stream: MuxStream): void {
    if (stream.owesCredit) return;
    stream.owesCredit = true;
    this.#creditDue.push(stream);
    this.#schedule();
  }
  sendAnswer(stream: MuxStream, head: unknown, end: boolean): void {
    this.#sendHead(stream.id, end ? FLAG.fin : 0, head);
  }
  sendReset(stream: MuxStream, error: ConnectorError): void {
    this.#sendFailure(FRAME.reset, stream.id, error.toBody());
  }
  mayGrow(bytes: number): boolean {
    if (bytes > this.#spareWindowBytes) return false;
    this.#spareWindowBytes -= bytes;
    return true;
  }
  finished(stream: MuxStream): void {
    this.#forget(stream);
  }

  // Sending

  #sendHead(id: number, flags: number, head: unknown): void {
    const json = JSON.stringify(head ?? null);
    if (json.length > MAX_HEAD_BYTES / 4 && Buffer.byteLength(json) > MAX_HEAD_BYTES) {
      throw new ConnectorError(
        "FRAME_TOO_LARGE",
        `A stream's head of ${json.length} characters is over the limit of ${MAX_HEAD_BYTES} bytes.`,
        {
          fix: "Send large content as stream bytes, not in the head.",
        },
      );
    }
    this.#heads.push({ type: FRAME.open, flags, stream: id, json });
    this.#schedule();
  }

  #sendFailure(type: typeof FRAME.reset | typeof FRAME.goAway, id: number, failure: Failure): void {
    if (id !== 0) {
      const at = this.#heads.findIndex((head) => head.stream === id);
      if (at !== -1) {
        this.#heads.splice(at, 1);
        // An OPEN that never left: the peer knows nothing of the stream and needs no RESET.
        if (this.#isOwn(id)) return;
      }
    }
    this.#sendControl(type, id, failureJson(failure, type));
  }

  // Frames are encoded only when they leave: the MAC counts them in that order.
  #sendControl(type: FrameType, stream: number, json: string): void {
    if (this.#closedBy !== null) return;
    this.#control.push({ type, flags: 0, stream, json });
    this.#schedule();
  }

  #sendPing(resolve: ((rttMs: number) => void) | null): void {
    const n = ++this.#pingNumber;
    this.#pings.push({ n, atMs: this.#clock.monotonic(), resolve });
    // A peer that answers none is dead soon; until then they stay few.
    if (this.#pings.length > 64) this.#pings.shift();
    this.#sendControl(FRAME.ping, 0, `{"n":${n}}`);
  }

  #enqueue(stream: MuxStream): void {
    if (stream.queued) return;
    stream.queued = true;
    (stream.lane === "bulk" ? this.#bulk : this.#interactive).push(stream);
    this.#schedule();
  }

  /** All that one turn of the event loop wants to send leaves together. */
  #schedule(): void {
    if (this.#scheduled || this.#closedBy !== null) return;
    this.#scheduled = true;
    queueMicrotask(() => {
      this.#scheduled = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#flushing || this.#closedBy !== null) return;
    this.#flushing = true;
    this.#transport.cork();
    try {
      while (this.#sendNext());
    } finally {
      this.#flushing = false;
      this.#transport.uncork();
    }
  }

  /** One frame, of the highest lane that has one and may send. */
  #sendNext(): boolean {
    const control = this.#control.shift();
    if (control !== undefined) {
      this.#count(this.#sent.control, control.json.length);
      this.#transport.send(this.#writer.control(control.type, control.flags, control.stream, control.json));
      if (this.#transport.bufferedBytes > CONTROL_CEILING_BYTES) {
        this.#over(new ConnectorError("PROTOCOL_ERROR", "The peer makes us answer and does not read the answers."));
        this.#transport.destroy();
        return false;
      }
      return true;
    }
    const creditor = this.#creditDue.pop();
    if (creditor !== undefined) {
      creditor.owesCredit = false;
      if (this.#streams.has(creditor.id) && creditor.bytes.creditDue) {
        this.#count(this.#sent.control, 0);
        const limit = creditor.bytes.grant(this.#clock.monotonic(), this.#pathRttMs);
        this.#transport.send(this.#writer.control(FRAME.credit, 0, creditor.id, `{"limit":${limit}}`));
      }
      return true;
    }
    // Counts what the transport holds, so one flush writes at most about this much: lanes are chosen anew after it.
    if (this.#waitsForDrain) return false;
    if (this.#transport.bufferedBytes >= HIGH_WATER_BYTES) {
      this.#waitsForDrain = true;
      return false;
    }
    const head = this.#heads.shift();
    if (head !== undefined) {
      this.#count(this.#sent.interactive, head.json.length);
      this.#transport.send(this.#writer.control(head.type, head.flags, head.stream, head.json));
      return true;
    }
    if (
      this.#interactive.length > 0 &&
      this.#inFlight.inFlightBytes < this.#inFlight.windowBytes + INTERACTIVE_RESERVE_BYTES
    ) {
      this.#sendFrom(this.#interactive);
      return true;
    }
    if (this.#bulk.length > 0 && this.#inFlight.admits()) {
      this.#sendFrom(this.#bulk);
      return true;
    }
    return false;
  }

  #sendFrom(ring: MuxStream[]): void {
    const stream = ring.shift()!;
    stream.queued = false;
    if (stream.readyBytes > 0) {
      const bytes = stream.take(this.#frameBytes(stream.lane));
      const timestampUs = this.#inFlight.timestampUs();
      this.#inFlight.sent(bytes.length);
      this.#count(this.#sent[stream.lane], bytes.length);
      const message = this.#writer.data(stream.id, timestampUs, bytes, stream.lane === "interactive");
      this.#transport.send(message);
      if (this.#writer.detaches(bytes.length)) this.#transport.send(bytes);
    }
    if (stream.endDue) {
      const end = JSON.stringify(stream.takeEnd());
      this.#count(this.#sent.control, end.length);
      this.#transport.send(this.#writer.control(FRAME.end, 0, stream.id, end));
    } else if (stream.readyBytes > 0) {
      stream.queued = true;
      ring.push(stream);
    }
  }

  #count(lane: LaneCount, bytes: number): void {
    lane.frames++;
    lane.bytes += bytes;
  }

  /** On a slow path frames are small, so that an interactive one never waits for long behind one of bulk. */
  #frameBytes(lane: Lane): number {
    return Math.min(FRAME_MAX_BYTES[lane], Math.max(FRAME_MIN_BYTES, this.#inFlight.windowBytes >>> 3));
  }

  // Receiving

  #receive(bytes: Buffer, more: boolean): void {
    if (this.#closedBy !== null) return;
    this.#lastSeenMs = this.#clock.monotonic();
    try {
      const frame = this.#reader.read(bytes, more);
      if (frame !== null) this.#handle(frame);
    } catch (caught) {
      this.close(toConnectorError(caught));
    }
  }

  #handle(frame: Frame): void {
    if (frame.type !== FRAME.data)
      this.#count(
        frame.type === FRAME.open ? this.#received.interactive : this.#received.control,
        frame.payload.length,
      );
    switch (frame.type) {
      case FRAME.data:
        return this.#handleData(frame);
      case FRAME.ack: {
        const ack = parseControl(frame, ackSchema);
        if (!this.#inFlight.acked(ack.bytes, ack.echo, ack.holdUs))
          throw violation("an ACK covers bytes that were never sent");
        if (this.#bulk.length > 0 || this.#interactive.length > 0) this.#schedule();
        return;
      }
      case FRAME.credit:
        this.#find(frame)?.credited(parseControl(frame, creditSchema).limit);
        return;
      case FRAME.open:
        return this.#handleOpen(frame);
      case FRAME.end: {
        const end = parseControl(frame, endSchema);
        const stream = this.#find(frame);
        if (stream !== undefined && !stream.ended(end))
          throw violation(`stream ${frame.stream} ended with another length or checksum than its bytes have`);
        return;
      }
      case FRAME.reset: {
        const error = ConnectorError.fromBody(parseControl(frame, failureSchema));
        if (frame.stream === 0) {
          this.#over(error);
          this.#transport.close();
          this.#clock.after(CLOSE_MS, () => this.#transport.destroy());
        } else this.#find(frame)?.broken(error);
        return;
      }
      case FRAME.ping:
        this.#sendControl(FRAME.pong, 0, `{"n":${parseControl(frame, pingSchema).n}}`);
        return;
      case FRAME.pong: {
        const { n } = parseControl(frame, pingSchema);
        const ping = this.#pings.find((one) => one.n === n);
        if (ping === undefined) return;
        this.#pings = this.#pings.filter((one) => one !== ping);
        this.#rttMs = this.#clock.monotonic() - ping.atMs;
        this.#pathRttMs = Math.min(this.#rttMs, (this.#pathRttMs ?? Infinity) * RTT_FORGOTTEN);
        this.#options.onRoundTrip?.(this.#rttMs);
        ping.resolve?.(this.#rttMs);
        return;
      }
      case FRAME.goAway: {
        const failure = parseControl(frame, failureSchema);
        this.#peerDraining = ConnectorError.fromBody(failure);
        this.#options.onGoAway?.(this.#peerDraining, failure.retryAfterMs ?? null);
        return;
      }
      default:
        throw violation("a frame of the handshake came in the session");
    }
  }

  #handleData(frame: Frame): void {
    const { payload } = frame;
    this.#receivedBytes += payload.length;
    this.#unackedBytes += payload.length;
    this.#newestEchoUs = frame.timestampUs;
    this.#newestAtMs = this.#lastSeenMs;
    if (
      this.#unackedBytes >= ACK_MOST_BYTES ||
      (this.#unackedBytes >= ACK_BYTES && this.#lastSeenMs - this.#ackedAtMs >= ACK_APART_MS)
    )
      this.#acknowledge();
    else this.#ackTimer ??= this.#clock.after(ACK_MS, () => this.#acknowledge());

    const stream = this.#find(frame);
    // Of a stream that is over here its lane is forgotten: bulk is what still comes then.
    this.#count(this.#received[stream?.lane ?? "bulk"], frame.payload.length);
    if (stream === undefined) return;
    if (stream.lane === "interactive" && this.#reader.mac !== null && (frame.flags & FLAG.maced) === 0) {
      throw violation("interactive bytes came without a MAC");
    }
    if (!stream.received(payload))
      throw violation(`stream ${frame.stream} got bytes beyond its credit, or out of order`);
  }

  #acknowledge(): void {
    this.#ackTimer?.cancel();
    this.#ackTimer = null;
    if (this.#unackedBytes === 0 || this.#closedBy !== null) return;
    this.#unackedBytes = 0;
    this.#ackedAtMs = this.#clock.monotonic();
    const holdUs = Math.round((this.#ackedAtMs - this.#newestAtMs) * 1000);
    this.#sendControl(FRAME.ack, 0, `{"bytes":${this.#receivedBytes},"echo":${this.#newestEchoUs},"holdUs":${holdUs}}`);
  }

  #handleOpen(frame: Frame): void {
    const id = frame.stream;
    const fin = (frame.flags & FLAG.fin) !== 0;
    const head = parseJson(frame);
    if (id === 0) throw violation("stream 0 cannot be opened");
    if (this.#isOwn(id)) {
      const stream = this.#find(frame);
      if (stream !== undefined && !stream.answeredBy(head, fin)) throw violation(`stream ${id} was answered twice`);
      return;
    }
    if (id <= this.#highestPeerId) throw violation(`stream ${id} was opened before`);
    this.#highestPeerId = id;
    if (this.#draining) {
      const error = new ConnectorError("GOING_AWAY", "This end is closing down and takes no new streams.", {
        fix: "Try again on the next connection.",
      });
      return this.#sendFailure(FRAME.reset, id, error.toBody());
    }
    if (this.#peerStreams >= this.#options.maxStreams) {
      const error = new ConnectorError(
        "STREAM_REFUSED",
        `${this.#peerStreams} streams are open on the link, the most that this end takes.`,
        {
          fix: "Try again when some of the work in progress has ended.",
        },
      );
      return this.#sendFailure(FRAME.reset, id, error.toBody());
    }
    const lane: Lane = (frame.flags & FLAG.bulk) !== 0 ? "bulk" : "interactive";
    const stream = new MuxStream(this, id, lane, head, {
      opened: false,
      fin,
      sendLimit: this.#options.peerWindows[lane],
      windowBytes: this.#options.windows[lane],
    });
    this.#streams.set(id, stream);
    this.#peerStreams++;
    if (this.#options.peerBackground !== true) this.#await(stream);
    try {
      this.#options.onStream(stream);
    } catch (caught) {
      stream.reset(toConnectorError(caught));
    }
  }

  #isOwn(id: number): boolean {
    return id % 2 === (this.#options.side === "agent" ? 1 : 0);
  }

  /** Undefined for a stream that is over here while frames of it were still on their way. Throws for one that never was. */
  #find(frame: Frame): MuxStream | undefined {
    const stream = this.#streams.get(frame.stream);
    if (stream !== undefined) return stream;
    const known = this.#isOwn(frame.stream) ? frame.stream < this.#nextId : frame.stream <= this.#highestPeerId;
    if (!known || frame.stream === 0)
      throw violation(`a ${FRAME_NAMES[frame.type]} is for stream ${frame.stream}, which was never opened`);
    return undefined;
  }

  #forget(stream: MuxStream): void {
    if (!this.#streams.delete(stream.id)) return;
    stream.release?.();
    this.#spareWindowBytes += stream.grownBytes;
    stream.grownBytes = 0;
    if (this.#isOwn(stream.id)) this.#ownStreams--;
    else this.#peerStreams--;
    if (stream.awaited && --this.#awaited === 0) this.#idle();
  }

  #await(stream: MuxStream): void {
    stream.awaited = true;
    this.#awaited++;
  }

  #idle(): void {
    const waiters = this.#idleWaiters;
    this.#idleWaiters = [];
    for (const resolve of waiters) resolve();
  }

  // Life

  #armBeat(): void {
    this.#beatTimer = this.#clock.after(this.#beatMs, () => {
      this.#sendPing(null);
      this.#armBeat();
    });
  }

  #armDeath(delayMs: number): void {
    const dueMs = this.#clock.monotonic() + delayMs;
    this.#deadTimer = this.#clock.after(delayMs, () => {
      const now = this.#clock.monotonic();
      const quietMs = now - this.#lastSeenMs;
      if (quietMs < this.#deadMs) this.#armDeath(this.#deadMs - quietMs);
      else if (now - dueMs > STALL_MS) this.#armDeath(STALL_MS);
      else {
        this.#over(
          new ConnectorError("LINK_LOST", `Nothing came from the other end for ${Math.round(quietMs / 1000)} s.`),
        );
        this.#transport.destroy();
      }
    });
  }

  /** The session is over: every stream breaks at once. */
  #over(reason: ConnectorError): void {
    if (this.#closedBy !== null) return;
    this.#closedBy = reason;
    this.#beatTimer?.cancel();
    this.#deadTimer?.cancel();
    this.#ackTimer?.cancel();
    this.#control = [];
    this.#heads = [];
    this.#interactive = [];
    this.#bulk = [];
    this.#creditDue = [];
    const lost = linkLost(reason);
    for (const stream of this.#streams.values()) stream.broken(lost);
    this.#idle();
    this.#resolveClosed(reason);
  }
}
