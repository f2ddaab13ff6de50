// A Transport over subjects of a NATS network. Both ends use it; the client itself is not imported here, only the shape
// of what it gives. What NATS lacks for it is made here: an order that can be checked, back-pressure, an end that is told.
//
// One session has two subjects, one a direction. Messages are a stream of bytes (u32 length, message, ...), cut into
// packets that fit what the server takes; the first byte of a packet is its kind:
//   data     u32 number, bytes of the stream      bye      u32 number of the next data: the end, nothing is missing
//   ack      u48 bytes of data packets received   cut      the end, at once
//   welcome  the control plane listens now        refuse   it does not: JSON {retryAfterMs}
// A number that is not the next one means that something was lost: the transport ends, as a broken socket would.
// Each packet names the sender's own subject as where to answer, so the server says (status 503) when nobody is there.
import { AsyncLocalStorage } from "node:async_hooks";
import { subscribe } from "node:diagnostics_channel";
import { z } from "zod";
import type { Clock } from "./clock.ts";
import { ConnectorError } from "./errors.ts";
import { MAX_MESSAGE_BYTES } from "./frames.ts";
import { HandshakeRefused } from "./handshake.ts";
import type { Transport } from "./transport.ts";

/** The part of a message that is used. */
export interface NatsMessageLike {
  readonly subject: string;
  readonly data: Uint8Array;
  readonly headers?: { readonly code: number } | undefined;
}

/** The part of a connection of `@nats-io/nats-core` that is used. It must not redial by itself. */
export interface NatsConnectionLike {
  readonly info?: { readonly max_payload: number } | undefined;
  publish(subject: string, payload: Uint8Array, options: { reply: string }): void;
  subscribe(
    subject: string,
    options: { callback: (error: Error | null, message: NatsMessageLike) => void },
  ): { unsubscribe(): void };
  flush(): Promise<void>;
  close(): Promise<void>;
  closed(): Promise<unknown>;
  status(): AsyncIterable<{ readonly type: string; readonly error?: Error }>;
  getServer(): string;
}

/** The socket under a connection: the client's own interface shows no back-pressure. */
export interface NatsSocketLike {
  /** Bytes that the kernel has not taken yet. */
  readonly bufferedBytes: number;
  /** Called when a socket that was full has room again. */
  onDrain(listener: () => void): void;
  destroy(): void;
}

interface NetSocketLike {
  readonly writableLength: number;
  on(event: "drain", listener: () => void): unknown;
  destroy(): void;
}

/** The TCP or TLS socket of a connection made by `@nats-io/transport-node`, which keeps it inside. */
export function natsSocket(connection: unknown): NatsSocketLike {
  const inside = connection as { protocol?: { transport?: { socket?: NetSocketLike } } };
  const socket = inside.protocol?.transport?.socket;
  if (typeof socket?.writableLength !== "number")
    throw new ConnectorError("INTERNAL", "The NATS client does not show its socket; its version is another one.");
  return {
    get bufferedBytes() {
      return socket.writableLength;
    },
    onDrain: (listener) => void socket.on("drain", listener),
    destroy: () => socket.destroy(),
  };
}

const dialling = new AsyncLocalStorage<{ destroy(): void }[]>();
let watching = false;

/** Runs one dial of the NATS client. A dial that fails by its time leaves its socket open; here it does not. */
export async function dialCleanly<T>(dial: () => Promise<T>): Promise<T> {
  if (!watching) {
    watching = true;
    // Told of each client socket as it is made, by whoever makes it.
    subscribe("net.client.socket", (message) =>
      dialling.getStore()?.push((message as { socket: { destroy(): void } }).socket),
    );
  }
  const sockets: { destroy(): void }[] = [];
  try {
    return await dialling.run(sockets, dial);
  } catch (error) {
    for (const socket of sockets) socket.destroy();
    throw error;
  }
}

/** First part of all subjects unless both ends are told another. */
export const NATS_PREFIX = "sallyport";
/** How many control plane processes share the hellos. */
export const NATS_QUEUE = "sallyport-cloud";
/** One part of a subject: what NATS users are told apart by. */
export const natsNameSchema = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, "1 to 64 letters, digits, '-' and '_'");
const sessionSchema = z.string().regex(/^[0-9a-f]{32}$/);
const helloSchema = z.object({ version: z.literal(1), session: sessionSchema });
const refusalSchema = z.object({ retryAfterMs: z.int().nonnegative().max(900_000) });

/** All subjects that a user of this name needs: it may publish to `up.NAME.>` and subscribe to `down.NAME.>`. */
export const natsSubjects = (prefix: string, name: string, session: string) => ({
  hello: `${prefix}.up.${name}.hello`,
  up: `${prefix}.up.${name}.${session}`,
  down: `${prefix}.down.${name}.${session}`,
});
/** What the control plane subscribes to in order to be found. */
export const natsHelloSubject = (prefix: string): string => `${prefix}.up.*.hello`;

/** Who asks for a session, by the subject that NATS let it publish to; null: not a hello. */
export function readNatsHello(prefix: string, message: NatsMessageLike): { name: string; session: string } | null {
  const parts = message.subject.slice(prefix.length + 1).split(".");
  const name = natsNameSchema.safeParse(parts[1]);
  if (!message.subject.startsWith(`${prefix}.`) || parts.length !== 3 || !name.success) return null;
  try {
    const hello = helloSchema.safeParse(JSON.parse(Buffer.from(message.data).toString("utf8")));
    return hello.success ? { name: name.data, session: hello.data.session } : null;
  } catch {
    return null;
  }
}

const PACKET = { data: 1, ack: 2, welcome: 3, refuse: 4, bye: 5, cut: 6 } as const;
const HEADER_BYTES = 5;
const PREFIX_BYTES = 4;
/** Measured: larger ones do not fit the server's read buffer and cost it a copy more. */
const PACKET_BYTES = 24 * 1024;
const MIN_PACKET_BYTES = 512;
/**
 * Data sent and not acknowledged: what may lie in the network's servers for one session and direction. A server cuts off
 * whoever has more than 64 MiB waiting. As large as the multiplexer's largest window, so that one decides on speed.
 */
const WINDOW_BYTES = 16 * 1024 * 1024;
const ACK_BYTES = 256 * 1024;
/** Messages that came before anybody asked for them; more means the peer talks out of turn. */
const MAX_EARLY_MESSAGES = 64;
/** How long the last words may take to leave. */
const CUT_MS = 1_000;

export interface NatsTransportOptions {
  readonly connection: NatsConnectionLike;
  readonly socket: NatsSocketLike;
  readonly prefix: string;
  readonly name: string;
  /** 32 hex digits, made by the agent for this one transport. */
  readonly session: string;
  readonly clock: Clock;
  /** Bytes that may come before `trust()` is called; absent: no limit. */
  readonly greetingBytes?: number;
}

const lost = (what: string): Error => new Error(`The link over NATS ended: ${what}.`);

export class NatsTransport implements Transport {
  readonly remoteAddress: string;
  readonly #connection: NatsConnectionLike;
  readonly #socket: NatsSocketLike;
  readonly #clock: Clock;
  readonly #out: string;
  readonly #in: string;
  readonly #packetBytes: number;

  // Sending: messages wait in `#parts` until a packet is full or the cork is drawn; packets wait for the window.
  #corked = false;
  #parts: Uint8Array[] = [];
  #partsBytes = 0;
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #nextOut = 0;
  #sentBytes = 0;
  #ackedBytes = 0;
  #full = false;
  #onDrain: (() => void) | null = null;

  // Receiving
  #nextIn = 0;
  #receivedBytes = 0;
  #acknowledgedBytes = 0;
  #greetingBytes: number;
  readonly #prefix = Buffer.alloc(PREFIX_BYTES);
  #prefixBytes = 0;
  #message: Buffer | null = null;
  #messageBytes = 0;
  #receiver: ((message: Buffer) => void) | null = null;
  readonly #early: Buffer[] = [];

  #ending = false;
  #over = false;
  #told = false;
  #cause: Error | null = null;
  #onClose: ((cause: Error | null) => void) | null = null;
  #onWelcome: ((failure: Error | null) => void) | null = null;

  constructor(options: NatsTransportOptions, side: "agent" | "cloud", remoteAddress: string) {
    this.remoteAddress = remoteAddress;
    this.#connection = options.connection;
    this.#socket = options.socket;
    this.#clock = options.clock;
    this.#greetingBytes = options.greetingBytes ?? Infinity;
    const { up, down } = natsSubjects(options.prefix, options.name, options.session);
    [this.#out, this.#in] = side === "agent" ? [up, down] : [down, up];
    this.#packetBytes = Math.min(PACKET_BYTES, this.#connection.info?.max_payload ?? PACKET_BYTES);
    if (this.#packetBytes < MIN_PACKET_BYTES)
      throw new ConnectorError(
        "CLOUD_UNREACHABLE",
        `The NATS server takes messages of ${this.#packetBytes} bytes at most.`,
        { fix: `Set its max_payload to ${MIN_PACKET_BYTES} bytes or more; its default is 1 MiB.` },
      );
    this.#connection.subscribe(this.#in, {
      callback: (error, message) => {
        // A throw from here would stop the client's reader without a word.
        try {
          if (error !== null) this.#refused(error);
          else this.#receive(message);
        } catch (caught) {
          this.#end(caught instanceof Error ? caught : new Error(String(caught)));
        }
      },
    });
    void this.#watch();
    void this.#connection
      .closed()
      .then((error) => this.#end(error instanceof Error ? error : lost("the connection to the NATS server broke")));
    this.#socket.onDrain(() => this.#drained());
  }

  /** Agent: asks for the session, and resolves when the control plane takes it. */
  async greet(hello: string): Promise<void> {
    const welcome = new Promise<void>((resolve, reject) => {
      this.#onWelcome = (failure) => (failure === null ? resolve() : reject(failure));
    });
    if (this.#over) throw this.#cause ?? lost("it was given up");
    const session = this.#in.slice(this.#in.lastIndexOf(".") + 1);
    this.#connection.publish(hello, Buffer.from(JSON.stringify({ version: 1, session })), { reply: this.#in });
    await welcome;
  }

  /** Cloud: says that it listens, once it does. */
  async welcome(): Promise<void> {
    await this.#connection.flush();
    if (this.#over) throw this.#cause ?? lost("it was given up");
    this.#publish(Buffer.of(PACKET.welcome));
  }

  /** The peer has proved who it is: no limit on what it may say any more. */
  trust(): void {
    this.#greetingBytes = Infinity;
  }

  // Sending

  send(message: Uint8Array): void {
    if (this.#over || this.#ending) return;
    const prefix = Buffer.allocUnsafe(PREFIX_BYTES);
    prefix.writeUInt32BE(message.length);
    this.#parts.push(prefix, message);
    this.#partsBytes += PREFIX_BYTES + message.length;
    this.#cut(!this.#corked);
  }

  cork(): void {
    this.#corked = true;
  }
  uncork(): void {
    this.#corked = false;
    this.#cut(true);
  }

  get bufferedBytes(): number {
    return this.#partsBytes + this.#waitingBytes + this.#socket.bufferedBytes;
  }

  onDrain(listener: () => void): void {
    this.#onDrain = listener;
  }

  /** Makes packets of what waits: full ones, and with `all` the rest, too. */
  #cut(all: boolean): void {
    const capacity = this.#packetBytes - HEADER_BYTES;
    while (this.#partsBytes >= capacity || (all && this.#partsBytes > 0)) {
      const bytes = Math.min(capacity, this.#partsBytes);
      const packet = Buffer.allocUnsafe(HEADER_BYTES + bytes);
      packet[0] = PACKET.data;
      packet.writeUInt32BE(this.#nextOut, 1);
      this.#nextOut = (this.#nextOut + 1) >>> 0;
      let at = HEADER_BYTES;
      let used = 0;
      while (at < packet.length) {
        const part = this.#parts[used]!;
        const room = packet.length - at;
        if (part.length <= room) used++;
        else this.#parts[used] = part.subarray(room);
        packet.set(part.length <= room ? part : part.subarray(0, room), at);
        at += Math.min(part.length, room);
      }
      this.#parts.splice(0, used);
      this.#partsBytes -= bytes;
      this.#waiting.push(packet);
      this.#waitingBytes += packet.length;
    }
    this.#pump();
  }

  #pump(): void {
    if (this.#over) return;
    let sent = 0;
    while (sent < this.#waiting.length && this.#sentBytes - this.#ackedBytes < WINDOW_BYTES) {
      const packet = this.#waiting[sent++]!;
      this.#waitingBytes -= packet.length;
      this.#sentBytes += packet.length;
      this.#publish(packet);
      if (this.#over) return;
    }
    if (sent > 0) this.#waiting.splice(0, sent);
    if (this.#waiting.length > 0) this.#full = true;
    if (this.#ending && this.#waiting.length === 0) this.#sayBye();
  }

  #publish(packet: Uint8Array): void {
    try {
      this.#connection.publish(this.#out, packet, { reply: this.#in });
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)));
    }
  }

  /** The socket has room, or the peer acknowledged. */
  #drained(): void {
    if (this.#over || this.#waiting.length > 0) return;
    this.#full = false;
    this.#onDrain?.();
  }

  // Receiving

  onMessage(next: ((message: Buffer) => void) | null): void {
    this.#receiver = next;
    while (this.#receiver !== null && this.#early.length > 0) this.#receiver(this.#early.shift()!);
  }

  #receive(message: NatsMessageLike): void {
    if (this.#over) return;
    if (message.headers !== undefined && message.headers.code === 503) {
      return this.#end(
        this.#onWelcome === null
          ? lost("nobody is at the other end any more")
          : new ConnectorError("CLOUD_UNREACHABLE", "No control plane listens in this NATS network.", {
              fix: "Check that the control plane runs with natsUrl, that both use one prefix, and that the servers are joined.",
            }),
      );
    }
    const packet = Buffer.from(message.data.buffer, message.data.byteOffset, message.data.byteLength);
    switch (packet[0]) {
      case PACKET.data:
        return this.#receiveData(packet);
      case PACKET.ack: {
        if (packet.length !== 7) break;
        const bytes = packet.readUIntBE(1, 6);
        if (bytes < this.#ackedBytes || bytes > this.#sentBytes) break;
        this.#ackedBytes = bytes;
        this.#pump();
        // The drain of the socket tells of its own bytes; only what waited for the window is told of here.
        if (this.#full && this.#waiting.length === 0) this.#drained();
        return;
      }
      case PACKET.welcome: {
        const onWelcome = this.#onWelcome;
        this.#onWelcome = null;
        onWelcome?.(null);
        return;
      }
      case PACKET.refuse:
        return this.#end(refusal(packet.subarray(1)));
      case PACKET.bye:
        if (packet.length !== HEADER_BYTES || packet.readUInt32BE(1) !== this.#nextIn)
          return this.#end(lost("messages were lost on the way"));
        return this.#end(null);
      case PACKET.cut:
        return this.#end(lost("the other end cut it"));
      default:
    }
    this.#end(lost("the peer sent a packet that is none"));
  }

  #receiveData(packet: Buffer): void {
    if (packet.length < HEADER_BYTES || packet.readUInt32BE(1) !== this.#nextIn)
      return this.#end(lost("messages were lost on the way, or came out of order"));
    this.#nextIn = (this.#nextIn + 1) >>> 0;
    this.#receivedBytes += packet.length;
    this.#greetingBytes -= packet.length;
    if (this.#greetingBytes < 0) return this.#end(lost("the peer said too much before it was known"));
    if (this.#receivedBytes - this.#acknowledgedBytes >= ACK_BYTES) {
      this.#acknowledgedBytes = this.#receivedBytes;
      const ack = Buffer.allocUnsafe(7);
      ack[0] = PACKET.ack;
      ack.writeUIntBE(this.#receivedBytes, 1, 6);
      this.#publish(ack);
    }
    let at = HEADER_BYTES;
    while (at < packet.length && !this.#over) {
      if (this.#message === null) {
        const taken = packet.copy(this.#prefix, this.#prefixBytes, at, at + PREFIX_BYTES - this.#prefixBytes);
        this.#prefixBytes += taken;
        at += taken;
        if (this.#prefixBytes < PREFIX_BYTES) return;
        this.#prefixBytes = 0;
        const length = this.#prefix.readUInt32BE(0);
        if (length > MAX_MESSAGE_BYTES || length - (packet.length - at) > this.#greetingBytes)
          return this.#end(lost(`the peer announced a message of ${length} bytes`));
        if (packet.length - at >= length) {
          this.#deliver(packet.subarray(at, at + length));
          at += length;
          continue;
        }
        this.#message = Buffer.allocUnsafe(length);
        this.#messageBytes = 0;
      }
      const taken = packet.copy(this.#message, this.#messageBytes, at);
      this.#messageBytes += taken;
      at += taken;
      if (this.#messageBytes === this.#message.length) {
        const whole = this.#message;
        this.#message = null;
        this.#deliver(whole);
      }
    }
  }

  #deliver(message: Buffer): void {
    if (this.#receiver !== null) this.#receiver(message);
    else if (this.#early.length < MAX_EARLY_MESSAGES) this.#early.push(message);
    else this.#end(lost("the peer sent messages before it was asked"));
  }

  // Ending

  onClose(listener: (cause: Error | null) => void): void {
    this.#onClose = listener;
    if (this.#told) listener(this.#cause);
  }

  close(): void {
    if (this.#over || this.#ending) return;
    this.#corked = false;
    this.#cut(true);
    this.#ending = true;
    this.#pump();
  }

  destroy(): void {
    this.#end(lost("this end cut it"));
  }

  #sayBye(): void {
    const bye = Buffer.allocUnsafe(HEADER_BYTES);
    bye[0] = PACKET.bye;
    bye.writeUInt32BE(this.#nextOut, 1);
    this.#publish(bye);
    this.#end(null);
  }

  /** Over: nothing is sent or received any more. The peer is told if it can be: a server tells it nothing of our socket. */
  #end(cause: Error | null): void {
    if (this.#over) return;
    const said = this.#ending && cause === null;
    this.#over = true;
    this.#cause = cause;
    this.#parts = [];
    this.#waiting = [];
    this.#partsBytes = 0;
    this.#waitingBytes = 0;
    this.#message = null;
    this.#early.length = 0;
    void this.#leave(said);
    const onWelcome = this.#onWelcome;
    this.#onWelcome = null;
    onWelcome?.(cause ?? lost("the control plane closed it"));
    // Never from within a call of the owner's.
    queueMicrotask(() => {
      this.#told = true;
      this.#onClose?.(cause);
    });
  }

  async #leave(said: boolean): Promise<void> {
    const timer = this.#clock.after(CUT_MS, () => this.#socket.destroy());
    try {
      if (!said) this.#connection.publish(this.#out, Buffer.of(PACKET.cut), { reply: this.#in });
      await this.#connection.flush();
      await this.#connection.close();
    } catch {
      // It is closed already.
    } finally {
      timer.cancel();
      this.#socket.destroy();
    }
  }

  /** What the server says against us: a subject that this user may not use, a slow consumer. */
  async #watch(): Promise<void> {
    for await (const { type, error } of this.#connection.status()) {
      if (type === "error") this.#refused(error);
    }
  }

  #refused(error: Error | undefined): void {
    this.#end(
      new ConnectorError("CLOUD_UNREACHABLE", `The NATS server refuses: ${error?.message ?? "it gives no reason"}.`, {
        fix: `Let the NATS user publish to ${wild(this.#out)} and subscribe to ${wild(this.#in)}.`,
        ...(error === undefined ? {} : { cause: error }),
      }),
    );
  }
}

/** The subject with its last part open: what a permission is written as. */
const wild = (subject: string): string => `${subject.slice(0, subject.lastIndexOf("."))}.>`;

/** The control plane is there and takes nobody more for now. */
export const natsRefusal = (retryAfterMs: number): Buffer =>
  Buffer.concat([Buffer.of(PACKET.refuse), Buffer.from(JSON.stringify({ retryAfterMs }))]);

function refusal(bytes: Buffer): HandshakeRefused {
  let retryAfterMs: number | null = null;
  try {
    retryAfterMs = refusalSchema.parse(JSON.parse(bytes.toString("utf8"))).retryAfterMs;
  } catch {
    // It gave no time.
  }
  return new HandshakeRefused(
    {
      code: "CLOUD_UNREACHABLE",
      message: "The control plane is busy or starting.",
      fix: "Nothing to do: the agent tries again by itself.",
      ...(retryAfterMs === null ? {} : { retryAfterMs }),
    },
    false,
  );
}

/** Agent: a session with the control plane over this connection, which then belongs to the transport. */
export async function dialNats(options: NatsTransportOptions): Promise<Transport> {
  const transport = new NatsTransport(options, "agent", options.connection.getServer());
  await transport.greet(natsSubjects(options.prefix, options.name, options.session).hello);
  return transport;
}

/** Cloud: takes the session that a hello asked for, on a connection of its own, which then belongs to the transport. */
export async function acceptNats(options: NatsTransportOptions): Promise<NatsTransport> {
  const transport = new NatsTransport(options, "cloud", `nats:${options.name}`);
  try {
    await transport.welcome();
  } catch (error) {
    transport.destroy();
    throw error;
  }
  return transport;
}
