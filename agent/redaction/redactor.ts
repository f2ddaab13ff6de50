// The port of the redactor: invariant 2. Every byte that the agent composes passes it on its way out.

/** Streaming redaction of one stream of text; safe across chunk boundaries. */
export interface RedactionStream {
  /** Bytes that are safe to let out now; holds back what could be the beginning of a secret. */
  push(chunk: Uint8Array): Buffer;
  /** The rest. */
  flush(): Buffer;
  /** Bytes held back now. At 0 all that was pushed is out, and what comes may as well go to a new stream. */
  readonly heldBytes: number;
}

export interface Redactor {
  /** Makes a value known, with all its encodings. Values under 8 characters are refused by configuration, not here. */
  add(secret: string): void;
  text(value: string): string;
  /** A deep copy with every string (keys too) redacted. */
  json<T>(value: T): T;
  stream(): RedactionStream;
}
