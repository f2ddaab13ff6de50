import fc from "fast-check";
import t from "tap";
import { mkdtempSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArtifactPath } from "./index.ts";
import { FsStore } from "./fs.ts";

const DOT = [".", "%2e", "%2E", "%252e", "%25252e", "%u002e", "%c0%ae", "%e0%80%ae", "．"];
const SLASH = ["/", "%2f", "%2F", "%252f", "\\", "%5c", "%255c", "%u2215".replace("2215", "002f"), "%c0%af", "//"];
const TAIL = ["", "\0", "%00", ";", ";x=1", " ", "\t", "\r\n", "%20"];

t.test("no spelling of a step out of the store passes, and none reaches a file", async (t) => {
  const outer = mkdtempSync(join(tmpdir(), "sallyport-path-"));
  t.teardown(() => rmSync(outer, { recursive: true }));
  mkdirSync(join(outer, "root/a"), { recursive: true });
  writeFileSync(join(outer, "sentinel"), "SENTINEL");
  const store = new FsStore("s", join(outer, "root"));
  const dots = fc
    .tuple(fc.constantFrom(...DOT), fc.constantFrom(...DOT), fc.constantFrom(...TAIL))
    .map((p) => p.join(""));
  const traversal = fc
    .tuple(
      fc.constantFrom("", "a", "a/b", "."),
      fc.array(fc.tuple(fc.constantFrom(...SLASH), dots), { minLength: 1, maxLength: 3 }),
      fc.constantFrom(...SLASH),
    )
    .map(([head, steps, last]) => `${head}${steps.map(([slash, step]) => slash + step).join("")}${last}sentinel`);
  await fc.assert(
    fc.asyncProperty(traversal, async (text) => {
      let parsed: string;
      try {
        parsed = parseArtifactPath(text);
      } catch (error) {
        const { code, message } = error as { code: string; message: string };
        if (code !== "PATH_INVALID" || !message.startsWith("The segment "))
          throw new Error(`${code}: ${message}`, { cause: error });
        return;
      }
      const opened = await store.read(parsed).catch(() => null);
      throw new Error(`passed: ${JSON.stringify(text)}${opened === null ? "" : " and was opened"}`);
    }),
    { numRuns: 3000 },
  );
});

t.test("honest names pass unchanged", (t) => {
  for (const path of [
    "",
    "a",
    "a/b.csv",
    "..a",
    "a..b",
    "...",
    ".hidden",
    "100%.txt",
    "50%25off",
    "a;b",
    "x=1&y=2",
    "日本語/ü",
    "with space",
    "~",
    "a:b",
    "c%20d",
  ]) {
    t.equal(parseArtifactPath(path), path);
  }
  for (const path of [
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/./b",
    "a/../b",
    "..\\x",
    "a\0b",
    "a\nb",
    "x".repeat(256),
    "a/".repeat(600) + "b",
    "\ud800",
    "a\u202eb",
    "%2e%2e/x",
    "..%2fx",
    "%2e%2e%2fx",
    "..;/x",
  ]) {
    t.throws(() => parseArtifactPath(path), { code: "PATH_INVALID" }, JSON.stringify(path));
  }
  t.end();
});
