// What the multiplexer stands on: an ordered channel of binary messages with back-pressure. It knows nothing of frames.

/** `more`: the message goes on in the next call. */
export type MessageReceiver = (bytes: Buffer, more?: boolean) => void;

export interface Transport {
  /** Hands over one message; the buffer must not be changed after. Never throws: a dead channel says so by `onClose`. */
  send(message: Uint8Array): void;
  /** Between cork and uncork messages are gathered and leave in one write. Calls do not nest. */
  cork(): void;
  uncork(): void;
  /** Bytes handed over that the kernel has not taken yet. */
  readonly bufferedBytes: number;
  /**
   * One receiver at a time; messages that come while there is none are kept (a few) and given to the next. `inParts`: it
   * takes a message as it comes, in parts; otherwise, and on a channel that has whole ones anyway, each call is a message.
   */
  onMessage(receiver: MessageReceiver | null, options?: { inParts?: boolean }): void;
  /** Called when `bufferedBytes` has fallen to zero again. */
  onDrain(listener: () => void): void;
  /** Called once, when the channel is over; null after a clean end. */
  onClose(listener: (cause: Error | null) => void): void;
  /** Says goodbye and closes; what was sent before still leaves. */
  close(): void;
  /** Cuts the channel now. */
  destroy(): void;
  readonly remoteAddress: string;
}
