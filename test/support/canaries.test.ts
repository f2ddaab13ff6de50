import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { randomBytes } from "node:crypto";
import t from "tap";
import { CanaryScanner, makeCanary, scanBytes, scanDirectory } from "./canaries.ts";
import { tempDir } from "./launcher.ts";

// Encoded here by other means than the scanner's, as the programs that leak would do it.
const wrapped = (text: string, width: number, end: string) => text.replace(new RegExp(`.{${width}}`, "g"), `$&${end}`);
const quotedPrintable = (text: string) =>
  [...Buffer.from(text)].map((b) =>
    b > 126 || b < 32 || b === 61 ? `=${b.toString(16).toUpperCase().padStart(2, "0")}` : String.fromCharCode(b),
  );
const leaks: Record<string, (text: string) => string | Buffer> = {
  raw: (text) => text,
  base64: (text) => Buffer.from(text).toString("base64"),
  base64url: (text) => Buffer.from(text).toString("base64url"),
  "base64 of a mail": (text) => wrapped(Buffer.from(text).toString("base64"), 19, "\r\n"),
  "base64 lines in JSON": (text) => JSON.stringify(wrapped(Buffer.from(text).toString("base64"), 16, "\n")),
  "hex lower": (text) => Buffer.from(text).toString("hex"),
  "hex upper": (text) => Buffer.from(text).toString("hex").toUpperCase(),
  "URL component": (text) => encodeURIComponent(text),
  form: (text) => new URLSearchParams({ k: text }).toString(),
  "every byte in percent": (text) => Buffer.from(text).toString("hex").replace(/../g, "%$&"),
  JSON: (text) => JSON.stringify({ k: text }),
  "JSON in JSON": (text) => JSON.stringify({ k: JSON.stringify({ k: text }) }),
  "JSON in ASCII": (text) =>
    JSON.stringify(text).replace(/[^\x20-\x7e]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`),
  XML: (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c] ?? c),
  "UTF-16 LE": (text) => Buffer.from(text, "utf16le"),
  "UTF-16 BE": (text) => Buffer.from(text, "utf16le").swap16(),
  "quoted-printable": (text) => quotedPrintable(text).join(""),
  "quoted-printable lines": (text) =>
    quotedPrintable(text)
      .map((c, i) => (i % 11 === 10 ? `${c}=\r\n` : c))
      .join(""),
};

for (const plain of [true, false]) {
  t.test(plain ? "a plain secret" : "a secret with characters that encodings change", async (t) => {
    const canary = makeCanary("it", { plain });
    for (const [name, leak] of Object.entries(leaks)) {
      let missed = 0;
      let tried = 0;
      for (const before of ["", "a", "ab", "abc", "some text "]) {
        const bytes = Buffer.from(leak(before + canary.value + " tail"));
        for (let split = 0; split <= bytes.length; split += 1) {
          const scanner = new CanaryScanner([makeCanary("another"), canary], "memory");
          scanner.write(bytes.subarray(0, split));
          scanner.write(bytes.subarray(split));
          tried += 1;
          if (!scanner.hits.some((hit) => hit.canary === "it")) missed += 1;
        }
        const scanner = new CanaryScanner([canary], "memory");
        for (const byte of bytes) scanner.write(Uint8Array.of(byte));
        tried += 1;
        if (scanner.hits.length === 0) missed += 1;
      }
      t.equal(missed, 0, `${name}: found at each of ${tried} offsets and splits`);
    }
  });
}

t.test("tells the encoding and the offset, and reports a place once", async (t) => {
  const canary = makeCanary("key");
  const text = `${"x".repeat(100_000)}${canary.value} and ${Buffer.from(canary.value).toString("hex")}`;
  t.match(scanBytes(text, [canary], "a log"), [
    { canary: "key", encoding: "raw", where: "a log", offset: 100_000 },
    { canary: "key", encoding: "hex, lower case", where: "a log", offset: 100_000 + canary.value.length + 5 },
  ]);
  t.equal(scanBytes(text, [canary], "a log").length, 2);
});

t.test("a key of many lines is found by one line", async (t) => {
  const lines = [0, 1, 2].map(() => randomBytes(24).toString("base64"));
  const canary = { name: "pem", value: lines.join("\n") };
  t.equal(scanBytes(`the second line is ${lines[1]}`, [canary], "a log").length, 1);
});

t.test("finds nothing in noise", async (t) => {
  const canaries = Array.from({ length: 40 }, (_, i) => makeCanary(`c${i}`, { plain: i % 2 === 0 }));
  const startedMs = performance.now();
  t.same(scanBytes(randomBytes(32 << 20), canaries, "noise"), []);
  t.comment(`32 MiB for 40 canaries: ${Math.round(performance.now() - startedMs)} ms`);
});

t.test("refuses a canary that is too short to mean anything", async (t) => {
  t.throws(() => scanBytes("", [{ name: "short", value: "1234567" }], "memory"), { message: /fewer than 8/ });
});

t.test("a folder: contents and names, no links", async (t) => {
  const canary = makeCanary("key");
  const dir = tempDir(t, "canaries");
  mkdirSync(join(dir, "a/b"), { recursive: true });
  writeFileSync(join(dir, "a/b/clean"), "nothing here");
  writeFileSync(join(dir, "a/b/dirty"), Buffer.concat([randomBytes((1 << 20) - 5), Buffer.from(canary.value)]));
  writeFileSync(join(dir, `a/${canary.value}`), "");
  symlinkSync("/", join(dir, "a/out"));
  t.same(
    scanDirectory(dir, [canary])
      .map(({ where }) => where)
      .sort(),
    [join(dir, "a/b/dirty"), `the name of ${join(dir, `a/${canary.value}`)}`].sort(),
  );
});
