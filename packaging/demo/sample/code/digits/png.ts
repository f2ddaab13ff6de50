// Draws a small picture and writes it as PNG: 8-bit RGB, one zlib stream, no library.
import { crc32, deflateSync } from "node:zlib";

export type Colour = readonly [number, number, number];

// 5 x 7 pixels a letter, one row a string of bits; only what the plots write
const GLYPHS: Record<string, string[]> = {
  "0": ["01110", "10001", "10011", "10101", "11001", "10001", "01110"],
  "1": ["00100", "01100", "00100", "00100", "00100", "00100", "01110"],
  "2": ["01110", "10001", "00001", "00110", "01000", "10000", "11111"],
  "3": ["11111", "00010", "00100", "00010", "00001", "10001", "01110"],
  "4": ["00010", "00110", "01010", "10010", "11111", "00010", "00010"],
  "5": ["11111", "10000", "11110", "00001", "00001", "10001", "01110"],
  "6": ["00110", "01000", "10000", "11110", "10001", "10001", "01110"],
  "7": ["11111", "00001", "00010", "00100", "01000", "01000", "01000"],
  "8": ["01110", "10001", "10001", "01110", "10001", "10001", "01110"],
  "9": ["01110", "10001", "10001", "01111", "00001", "00010", "01100"],
  ".": ["00000", "00000", "00000", "00000", "00000", "01100", "01100"],
  "%": ["11000", "11001", "00010", "00100", "01000", "10011", "00011"],
  a: ["00000", "00000", "01110", "00001", "01111", "10001", "01111"],
  b: ["10000", "10000", "10110", "11001", "10001", "10001", "11110"],
  c: ["00000", "00000", "01110", "10000", "10000", "10001", "01110"],
  d: ["00001", "00001", "01101", "10011", "10001", "10001", "01111"],
  e: ["00000", "00000", "01110", "10001", "11111", "10000", "01110"],
  g: ["00000", "00000", "01111", "10001", "01111", "00001", "01110"],
  h: ["10000", "10000", "10110", "11001", "10001", "10001", "10001"],
  i: ["00100", "00000", "01100", "00100", "00100", "00100", "01110"],
  l: ["01100", "00100", "00100", "00100", "00100", "00100", "01110"],
  m: ["00000", "00000", "11010", "10101", "10101", "10001", "10001"],
  n: ["00000", "00000", "10110", "11001", "10001", "10001", "10001"],
  o: ["00000", "00000", "01110", "10001", "10001", "10001", "01110"],
  p: ["00000", "00000", "11110", "10001", "11110", "10000", "10000"],
  r: ["00000", "00000", "10110", "11001", "10000", "10000", "10000"],
  s: ["00000", "00000", "01110", "10000", "01110", "00001", "11110"],
  t: ["01000", "01000", "11100", "01000", "01000", "01001", "00110"],
  u: ["00000", "00000", "10001", "10001", "10001", "10011", "01101"],
  w: ["00000", "00000", "10001", "10001", "10101", "10101", "01010"],
  y: ["00000", "00000", "10001", "10001", "01111", "00001", "01110"],
};

export class Picture {
  readonly width: number;
  readonly height: number;
  readonly #pixels: Buffer;

  constructor(width: number, height: number, paper: Colour = [255, 255, 255]) {
    this.width = width;
    this.height = height;
    this.#pixels = Buffer.alloc(width * height * 3);
    this.box(0, 0, width, height, paper);
  }

  /** Filled rectangle; what lies outside is cut off. */
  box(x: number, y: number, width: number, height: number, colour: Colour): void {
    for (let row = Math.max(0, Math.round(y)); row < Math.min(this.height, Math.round(y + height)); row++) {
      for (let column = Math.max(0, Math.round(x)); column < Math.min(this.width, Math.round(x + width)); column++) {
        this.#pixels.set(colour, (row * this.width + column) * 3);
      }
    }
  }

  line(x0: number, y0: number, x1: number, y1: number, colour: Colour, thickness = 2): void {
    const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
    for (let i = 0; i <= steps; i++) {
      this.box(
        x0 + ((x1 - x0) * i) / steps - thickness / 2,
        y0 + ((y1 - y0) * i) / steps - thickness / 2,
        thickness,
        thickness,
        colour,
      );
    }
  }

  /** Top left corner of the text; letters are 6 x 8 pixels times `scale`. Letters without a glyph are left out. */
  text(words: string, x: number, y: number, colour: Colour, scale = 1): void {
    [...words].forEach((letter, at) => {
      GLYPHS[letter]?.forEach((row, dy) =>
        [...row].forEach(
          (bit, dx) => bit === "1" && this.box(x + (at * 6 + dx) * scale, y + dy * scale, scale, scale, colour),
        ),
      );
    });
  }

  png(): Buffer {
    const rows = Buffer.alloc(this.height * (1 + this.width * 3)); // each row begins with its filter: 0, none
    for (let y = 0; y < this.height; y++)
      this.#pixels.copy(rows, y * (1 + this.width * 3) + 1, y * this.width * 3, (y + 1) * this.width * 3);
    const chunk = (type: string, data: Buffer) => {
      const body = Buffer.concat([Buffer.from(type), data]);
      const out = Buffer.alloc(body.length + 8);
      out.writeUInt32BE(data.length, 0);
      body.copy(out, 4);
      out.writeUInt32BE(crc32(body), body.length + 4);
      return out;
    };
    const header = Buffer.alloc(13);
    header.writeUInt32BE(this.width, 0);
    header.writeUInt32BE(this.height, 4);
    header.set([8, 2, 0, 0, 0], 8); // 8 bits, RGB
    return Buffer.concat([
      Buffer.from("89504e470d0a1a0a", "hex"),
      chunk("IHDR", header),
      chunk("IDAT", deflateSync(rows)),
      chunk("IEND", Buffer.alloc(0)),
    ]);
  }
}

/** From paper to ink as `share` goes from 0 to 1. */
export const shade = (share: number, ink: Colour): Colour =>
  [0, 1, 2].map((i) => Math.round(255 + (ink[i]! - 255) * share)) as unknown as Colour;
