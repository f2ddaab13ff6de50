// What one direction of a stream sums up over its bytes, told in its END: CRC-32, or in the bulk lane, when both ends
// can, a GMAC under a key of the session. The GMAC costs a fifth of the CRC, which zlib computes without the processor's
// help, and it finds forgery and not only accidents.
import { createCipheriv, timingSafeEqual, type CipherGCM } from "node:crypto";
import { crc32 } from "node:zlib";

/** 32 bytes for each direction's bulk; never the same for both. */
export interface BulkKeys {
  readonly send: Uint8Array;
  readonly receive: Uint8Array;
}

/** As END carries it. Both absent: none was agreed. */
export interface SumFields {
  readonly crc32?: number | undefined;
  /** Base64url of 16 bytes. */
  readonly gmac?: string | undefined;
}

export interface Checksum {
  update(bytes: Uint8Array): void;
  /** Over all bytes; the last call. */
  fields(): SumFields;
  /** Is that what the peer says? The last call. */
  matches(said: SumFields): boolean;
}

const IV_BYTES = 12;
const TAG_BYTES = 16;

class Crc32 implements Checksum {
  #sum = 0;
  update(bytes: Uint8Array): void {
    this.#sum = crc32(bytes, this.#sum);
  }
  fields(): SumFields {
    return { crc32: this.#sum };
  }
  matches(said: SumFields): boolean {
    return said.crc32 === this.#sum;
  }
}

class Gmac implements Checksum {
  readonly #cipher: CipherGCM;

  /** The nonce is the stream's id: a session uses none twice, and each direction has a key of its own. */
  constructor(key: Uint8Array, stream: number) {
    const iv = Buffer.alloc(IV_BYTES);
    iv.writeUInt32BE(stream, IV_BYTES - 4);
    this.#cipher = createCipheriv("aes-256-gcm", key, iv, { authTagLength: TAG_BYTES });
  }
  update(bytes: Uint8Array): void {
    this.#cipher.setAAD(bytes);
  }
  #tag(): Buffer {
    this.#cipher.final();
    return this.#cipher.getAuthTag();
  }
  fields(): SumFields {
    return { gmac: this.#tag().toString("base64url") };
  }
  matches(said: SumFields): boolean {
    const tag = Buffer.from(said.gmac ?? "", "base64url");
    return tag.length === TAG_BYTES && timingSafeEqual(tag, this.#tag());
  }
}

/** `key` null: CRC-32. */
export const checksum = (key: Uint8Array | null, stream: number): Checksum =>
  key === null ? new Crc32() : new Gmac(key, stream);
