// The masks of RFC 6455: what a client sends is XORed with four bytes of its choice. By the native code of the package
// `bufferutil` where it is installed (`ws` brings it along as an option), word by word in JavaScript where it is not.
import { randomFillSync } from "node:crypto";
import { createRequire } from "node:module";

interface Native {
  mask(source: Uint8Array, mask: Uint8Array, output: Uint8Array, offset: number, length: number): void;
  unmask(buffer: Uint8Array, mask: Uint8Array): void;
}

/** Below this a call into native code costs more than the loop. */
const NATIVE_BYTES = 128;

const native: Native | null = (() => {
  try {
    return createRequire(import.meta.url)("bufferutil") as Native;
  } catch {
    return null;
  }
})();

/** XORs `buffer` in place. `turn`: which of the four bytes meets its first. */
export function unmask(buffer: Buffer, mask: Buffer, turn = 0): void {
  if (native !== null && buffer.length >= NATIVE_BYTES) native.unmask(buffer, turn === 0 ? mask : turned(mask, turn));
  else xor(buffer, mask, turn);
}

/** Copies `source` into `output` at `offset`, masked. */
export function maskInto(source: Uint8Array, mask: Buffer, output: Buffer, offset: number): void {
  if (native !== null && source.length >= NATIVE_BYTES) native.mask(source, mask, output, offset, source.length);
  else {
    output.set(source, offset);
    xor(output.subarray(offset, offset + source.length), mask, 0);
  }
}

const scratch = Buffer.alloc(4);
function turned(mask: Buffer, turn: number): Buffer {
  for (let i = 0; i < 4; i++) scratch[i] = mask[(turn + i) & 3]!;
  return scratch;
}

function xor(buffer: Buffer, mask: Buffer, turn: number): void {
  const { length } = buffer;
  let at = 0;
  if (length >= 16) {
    const aligned = (4 - (buffer.byteOffset & 3)) & 3;
    for (; at < aligned; at++) buffer[at] = buffer[at]! ^ mask[(turn + at) & 3]!;
    const words = new Uint32Array(buffer.buffer, buffer.byteOffset + at, (length - at) >>> 2);
    const byte = (i: number): number => mask[(turn + at + i) & 3]!;
    // Words are little-endian on every machine that Node runs on but one, where `bufferutil` is none the wiser either.
    const word = byte(0) | (byte(1) << 8) | (byte(2) << 16) | (byte(3) << 24);
    for (let i = 0; i < words.length; i++) words[i] = words[i]! ^ word;
    at += words.length * 4;
  }
  for (; at < length; at++) buffer[at] = buffer[at]! ^ mask[(turn + at) & 3]!;
}

const POOL_BYTES = 4096;
const pool = Buffer.alloc(POOL_BYTES);
let poolAt = POOL_BYTES;

/** Four fresh random bytes, valid until the next call. */
export function freshMask(): Buffer {
  if (poolAt === POOL_BYTES) {
    randomFillSync(pool);
    poolAt = 0;
  }
  poolAt += 4;
  return pool.subarray(poolAt - 4, poolAt);
}
