// A TCP socket read into large buffers of ours. Node reads 64 KiB at a time into a buffer that it makes for that read; with
// the option `onread` a socket is read into what it is given, as much as that holds: a quarter of the calls, the
// callbacks and, on the way to the sender, the acknowledgements. The option is for sockets that one makes oneself.
// A socket of an HTTP server or client gets it here, later, in the fields that the option sets. Where a Node has no such
// fields, or the socket is not plain TCP (TLS hands over 16 KiB at a time anyway), nothing happens. Any part may import it.

/** Told by `readInto` where to read to and what came. */
export interface ReadTarget {
  /** Where the next read goes: asked for at once, and after each read. What it gives is left alone until `filled`. */
  room(): Uint8Array;
  /** So many bytes came into the room given last. False: nothing more until the socket is resumed. */
  filled(bytes: number): boolean;
}

/** As `net.Socket` names them: where it reads to, who gives the next, who is told. All null without the option. */
const FIELDS = ["kBuffer", "kBufferGen", "kBufferCb"];

interface Socket {
  readonly readableLength: number;
}
interface Handle {
  readonly constructor: { readonly name: string };
  readonly useUserBuffer?: (buffer: Uint8Array) => void;
}

/**
 * False: the socket cannot, or holds something still, which must come first, and goes on to emit "data". True: what it
 * reads from now on is no longer emitted; its pause, end and errors are as ever.
 */
export function readInto(socket: object, target: ReadTarget): boolean {
  const fields = socket as Socket & { _handle?: Handle | null } & Record<symbol, unknown>;
  if (fields.readableLength !== 0) return false;
  const handle = fields._handle;
  if (handle?.constructor.name !== "TCP" || typeof handle.useUserBuffer !== "function") return false;
  const symbols = Object.getOwnPropertySymbols(socket);
  const [buffer, next, told] = FIELDS.map((name) => symbols.find((symbol) => symbol.description === name));
  if (buffer === undefined || next === undefined || told === undefined) return false;
  if (fields[buffer] !== null || fields[next] !== null || fields[told] !== null) return false;
  const room = target.room();
  fields[next] = () => target.room();
  fields[told] = (bytes: number) => target.filled(bytes);
  fields[buffer] = room;
  handle.useUserBuffer(room);
  return true;
}
