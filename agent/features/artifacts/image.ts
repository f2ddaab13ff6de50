// Knows an image by its first bytes, and its size in pixels by its header. Nothing is decoded.

export function sniffImage(head: Buffer): string | null {
  const starts = (hex: string) => head.subarray(0, hex.length / 2).equals(Buffer.from(hex, "hex"));
  if (starts("89504e470d0a1a0a")) return "image/png";
  if (starts("ffd8ff")) return "image/jpeg";
  if (starts("474946383761") || starts("474946383961")) return "image/gif";
  if (starts("52494646") && head.subarray(8, 12).toString("latin1") === "WEBP") return "image/webp";
  return null;
}

/** Null when the header does not say (SVG), is cut off or damaged. */
export function imageSize(head: Buffer, mediaType: string): { width: number; height: number } | null {
  try {
    const size = SIZES[mediaType]?.(head) ?? null;
    return size !== null && size.width > 0 && size.height > 0 ? size : null;
  } catch (error) {
    if (error instanceof RangeError) return null; // it ends before its header does
    throw error;
  }
}

type Size = { width: number; height: number };
const SIZES: Record<string, (head: Buffer) => Size | null> = {
  "image/png": (head) => ({ width: head.readUInt32BE(16), height: head.readUInt32BE(20) }),
  "image/gif": (head) => ({ width: head.readUInt16LE(6), height: head.readUInt16LE(8) }),
  "image/jpeg": (head) => {
    // segments until the frame header (SOF0 to SOF15, without DHT, JPG and DAC)
    for (let at = 2; head.readUInt8(at) === 0xff;) {
      const marker = head.readUInt8(at + 1);
      if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker))
        return { height: head.readUInt16BE(at + 5), width: head.readUInt16BE(at + 7) };
      at += 2 + head.readUInt16BE(at + 2);
    }
    return null;
  },
  "image/webp": (head) => {
    const kind = head.subarray(12, 16).toString("latin1");
    if (kind === "VP8X") return { width: head.readUIntLE(24, 3) + 1, height: head.readUIntLE(27, 3) + 1 };
    if (kind === "VP8L") {
      const bits = head.readUInt32LE(21);
      return { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1 };
    }
    return kind === "VP8 " ? { width: head.readUInt16LE(26) & 0x3fff, height: head.readUInt16LE(28) & 0x3fff } : null;
  },
};
