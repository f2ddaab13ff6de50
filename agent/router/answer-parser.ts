// Reads answers of HTTP/1.1 from the bytes of one connection to a replica, strictly: what leaves room for a second reading
// ends the connection. Knows no sockets. What it is held against: Node's own parser (answer-parser.test.ts).

export interface AnswerEvents {
  /** Names in small letters: name, value, name, value, ... Answers below 200 are left out. */
  head(status: number, headers: string[]): void;
  /** A view of what was given to `execute`: overwritten after the call. */
  body(chunk: Buffer): void;
  /** The answer is whole. */
  end(): void;
}

/** The replica does not speak HTTP, or not clearly. */
export class MalformedAnswer extends Error {}

export const ANSWER_HEAD_BYTES = 32 * 1024;
const LINE_BYTES = 16 * 1024;
/** All of a head but its last line break; a header's name is a token that the colon follows at once. */
const HEAD =
  /^HTTP\/1\.[01] [1-9]\d\d(?: [\t\x20-\x7e\x80-\xff]*)?(?:\r\n[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)*$/;
/** Its extensions are read over. */
const CHUNK_SIZE =
  /^[0-9A-Fa-f]{1,13}(?:;[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:=(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+|"[\t !#-[\]-~]*"))?)*$/;
const TRAILER = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*$/;
const FRAMES = /^(?:content-length|transfer-encoding):/i;

type State = "idle" | "head" | "length" | "until-close" | "size" | "chunk" | "chunk-end" | "trailer";

export class AnswerParser {
  /** Of the last answer that is whole: another request may follow on this connection. */
  keepAlive = false;
  /** Of the last head: the replica closes an idle connection after so long; null: it did not say. */
  keepAliveMs: number | null = null;
  readonly #to: AnswerEvents;
  #state: State = "idle";
  #toHead = false;
  /** Bytes of the body or chunk that are to come. */
  #left = 0;
  /** The begin of a head or line whose rest is to come. */
  #begun: Buffer | null = null;
  #trailerBytes = 0;

  constructor(to: AnswerEvents) {
    this.#to = to;
  }

  /** A request leaves; an answer to HEAD has no body, whatever its head says. */
  expect(method: string): void {
    this.#state = "head";
    this.#begun = null;
    this.#toHead = method === "HEAD";
    this.keepAlive = false;
  }

  /** Nobody waits for the rest of the answer any more. */
  stop(): void {
    this.#state = "idle";
    this.keepAlive = false;
  }

  /** Throws MalformedAnswer. Bytes after the end of an answer spoil the connection: `keepAlive` is false then. */
  execute(given: Buffer): void {
    let bytes = given;
    let at = 0;
    if (this.#begun !== null) {
      bytes = Buffer.concat([this.#begun, given]);
      this.#begun = null;
    }
    const all = bytes.length;
    while (at < all) {
      switch (this.#state) {
        case "idle":
          this.keepAlive = false;
          return;
        case "head": {
          const end = bytes.indexOf("\r\n\r\n", at, "latin1");
          if ((end === -1 ? all : end) - at > ANSWER_HEAD_BYTES) throw new MalformedAnswer("Its head is too long.");
          if (end === -1) {
            this.#begun = Buffer.from(bytes.subarray(at));
            return;
          }
          const text = bytes.toString("latin1", at, end);
          at = end + 4;
          this.#head(text, at === all);
          break;
        }
        case "length":
        case "chunk": {
          const end = Math.min(all, at + this.#left);
          this.#left -= end - at;
          const piece = at === 0 && end === all ? bytes : bytes.subarray(at, end);
          at = end;
          const over = this.#left === 0;
          if (over && this.#state === "chunk") this.#state = "chunk-end";
          this.#to.body(piece);
          if (over && this.#state === "length") this.#end(at === all);
          break;
        }
        case "until-close":
          this.#to.body(at === 0 ? bytes : bytes.subarray(at));
          return;
        default: {
          const end = bytes.indexOf("\r\n", at, "latin1");
          if ((end === -1 ? all : end) - at > LINE_BYTES)
            throw new MalformedAnswer("A line between chunks is too long.");
          if (end === -1) {
            this.#begun = Buffer.from(bytes.subarray(at));
            return;
          }
          const line = bytes.toString("latin1", at, end);
          at = end + 2;
          this.#line(line, at === all);
        }
      }
    }
  }

  /** No bytes will come. False: the answer broke off. */
  close(): boolean {
    this.keepAlive = false;
    if (this.#state === "until-close") {
      this.#state = "idle";
      this.#to.end();
    }
    return this.#state === "idle";
  }

  #end(clean: boolean): void {
    this.#state = "idle";
    // Nobody asked for what follows.
    if (!clean) this.keepAlive = false;
    this.#to.end();
  }

  #head(text: string, last: boolean): void {
    if (!HEAD.test(text)) throw new MalformedAnswer("Its head is malformed.");
    const status = Number(text.slice(9, 12));
    const headers: string[] = [];
    let declared: number | null = null;
    let chunked = false;
    let close = false;
    let stays = text[7] === "1";
    let keepAliveMs: number | null = null;
    for (let from = text.indexOf("\r\n"); from !== -1;) {
      const next = text.indexOf("\r\n", from + 2);
      const colon = text.indexOf(":", from);
      const name = text.slice(from + 2, colon).toLowerCase();
      let begin = colon + 1;
      let end = next === -1 ? text.length : next;
      while (begin < end && isBlank(text.charCodeAt(begin))) begin += 1;
      while (begin < end && isBlank(text.charCodeAt(end - 1))) end -= 1;
      const value = text.slice(begin, end);
      headers.push(name, value);
      if (name === "content-length") {
        if (declared !== null || !/^\d{1,15}$/.test(value)) throw new MalformedAnswer("Its length is malformed.");
        declared = Number(value);
      } else if (name === "transfer-encoding") {
        // A tab behind it is read in two ways.
        if (
          chunked ||
          text.slice(colon + 1, next === -1 ? text.length : next).includes("\t") ||
          value.toLowerCase() !== "chunked"
        )
          throw new MalformedAnswer("Its transfer coding is not known.");
        chunked = true;
      } else if (name === "connection") {
        for (const token of value.toLowerCase().split(",")) {
          if (token.trim() === "close") close = true;
          else if (token.trim() === "keep-alive") stays = true;
        }
      } else if (name === "keep-alive") {
        const seconds = /(?:^|[,\s])timeout=(\d{1,6})/i.exec(value)?.[1];
        if (seconds !== undefined) keepAliveMs = Number(seconds) * 1000;
      }
      from = next;
    }
    if (chunked && text[7] === "0") throw new MalformedAnswer("HTTP/1.0 knows no transfer coding.");
    if (declared !== null && chunked) throw new MalformedAnswer("It has both a length and a transfer coding.");
    if (status === 101) throw new MalformedAnswer("It changes to a protocol that nobody asked for.");
    // A word in between; the answer itself follows.
    if (status < 200) {
      if (text[7] === "0") throw new MalformedAnswer("HTTP/1.0 knows no word in between.");
      return;
    }
    this.keepAlive = stays && !close;
    this.keepAliveMs = keepAliveMs;
    const bare = this.#toHead || status === 204 || status === 304 || declared === 0;
    if (!bare) {
      if (declared !== null) {
        this.#state = "length";
        this.#left = declared;
      } else if (chunked) {
        this.#state = "size";
        this.#trailerBytes = 0;
      } else {
        this.#state = "until-close";
        this.keepAlive = false;
      }
    }
    this.#to.head(status, headers);
    if (bare && this.#state === "head") this.#end(last);
  }

  #line(line: string, last: boolean): void {
    if (this.#state === "chunk-end") {
      if (line !== "") throw new MalformedAnswer("A chunk does not end where it says.");
      this.#state = "size";
    } else if (this.#state === "size") {
      if (!CHUNK_SIZE.test(line)) throw new MalformedAnswer("The length of a chunk is malformed.");
      this.#left = parseInt(line, 16);
      this.#state = this.#left === 0 ? "trailer" : "chunk";
    } else {
      // Trailers are not passed on.
      if (line === "") return this.#end(last);
      if (!TRAILER.test(line) || FRAMES.test(line)) throw new MalformedAnswer("Its trailer is malformed.");
      this.#trailerBytes += line.length;
      if (this.#trailerBytes > LINE_BYTES) throw new MalformedAnswer("Its trailer is too long.");
    }
  }
}

const isBlank = (code: number): boolean => code === 32 || code === 9;
