// How much is read of one socket before everything else has its turn. libuv reads a socket that has more up to 32 times
// in a row, megabytes of bulk, while a small request, or the answer of the thread pool that a small request waits for, stands
// by. So whoever reads bulk says what came, and the socket rests until the next turn of the event loop. For sockets of
// links and stores; nothing here knows what the bytes are. Any part may import it.

/** Once so much of one socket has come, what more there is waits for the next turn. Less than one large read (`readInto`). */
const TURN_BYTES = 128 * 1024;

interface Pausable {
  pause(): unknown;
  resume(): unknown;
}

export class ReadTurns {
  readonly #socket: Pausable;
  readonly #mayResume: () => boolean;
  #bytes = 0;
  #resting = false;

  /** `mayResume`: asked when a rest is over; false where the reader itself has paused the socket meanwhile. */
  constructor(socket: Pausable, mayResume: () => boolean = () => true) {
    this.#socket = socket;
    this.#mayResume = mayResume;
  }

  /** Until the next turn the socket is to stay paused, whoever else would resume it. */
  get resting(): boolean {
    return this.#resting;
  }

  /** So many bytes came in one read. Small ones, which have emptied the socket, need not be told. */
  took(bytes: number): void {
    if (this.#bytes === 0) setImmediate(() => this.#next());
    this.#bytes += bytes;
    if (this.#bytes < TURN_BYTES || this.#resting) return;
    this.#resting = true;
    this.#socket.pause();
  }

  #next(): void {
    this.#bytes = 0;
    if (!this.#resting) return;
    this.#resting = false;
    if (this.#mayResume()) this.#socket.resume();
  }
}
