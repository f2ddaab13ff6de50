// Previews of good and of mangled files: always a preview or a reason, never a crash, never more than is allowed.
import fc from "fast-check";
import { readFileSync } from "node:fs";
import { previewSchema } from "@sallyport/protocol";
import t from "tap";
import { boundPreview } from "./bounds.ts";
import { makePreview, previewReadBytes, previewType } from "./preview.ts";

const show = (
  path: string,
  content: Buffer | string,
  { rows = 200, mediaType = null as string | null, sizeBytes = -1 } = {},
) => {
  const bytes = Buffer.from(content);
  const type = previewType(path, mediaType);
  const size = sizeBytes === -1 ? bytes.length : sizeBytes;
  return makePreview({
    path,
    type,
    head: bytes.subarray(0, previewReadBytes(type, size)),
    sizeBytes: size,
    mediaType,
    rows,
  });
};

t.test("tables", async (t) => {
  t.match(show("a.csv", 'id,name,ok\n1,"a, ""b""\nc",true\n2,,false\n').preview, {
    type: "table",
    columns: [
      { name: "id", kind: "number" },
      { name: "name", kind: "text" },
      { name: "ok", kind: "boolean" },
    ],
    rows: [
      [1, 'a, "b"\nc', true],
      [2, null, false],
    ],
    totalRows: 2,
    truncated: false,
  });
  t.match(
    show("a.csv", "zip\n007\n12\n").preview,
    { rows: [["007"], ["12"]] },
    "leading zeros are kept, in the whole column",
  );
  t.match(
    show("a.csv", "id\n9007199254740993\n").preview,
    { rows: [["9007199254740993"]] },
    "no digit of a large number is lost",
  );
  t.match(show("a.tsv", "a\tb\n1\t2\n").preview, { rows: [[1, 2]] });
  t.match(show("a.csv", "a;b\n1;2\n").preview, { columns: [{ name: "a" }, { name: "b" }] }, "semicolons");
  t.match(show("a.csv", `a\n${"1\n".repeat(1000)}`, { rows: 10 }).preview, {
    rows: { length: 10 },
    totalRows: 1000,
    truncated: true,
  });
  t.match(show("a.csv", 'a,b\n1,"open').preview, { type: "text" }, "an unclosed quote is shown as text");
  t.match(
    show("a.csv", "a,b\n1,2\n3,4", { sizeBytes: 10_000_000 }).preview,
    { rows: [[1, 2]], totalRows: null, truncated: true },
    "a cut row is not shown",
  );
});

t.test("images are known by their bytes", async (t) => {
  const png = readFileSync(new URL("../../../packaging/demo/sample/images/digits.png", import.meta.url));
  const made = show("x.png", png);
  t.match(made.preview, { type: "image", mediaType: "image/png", width: 732, height: 580, data: "" });
  t.equal(made.content, png.length <= 4 << 20 ? made.content : null);
  t.same(made.content, png);
  t.match(show("x.png", "<script>alert(1)</script>").preview, { type: "none" });
  t.match(show("x.svg", '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>').preview, {
    type: "image",
    mediaType: "image/svg+xml",
  });
  t.match(show("x.svg", "<html></html>").preview, { type: "none" });
  t.match(show("x.png", png, { sizeBytes: 100 << 20 }).preview, { type: "none", reason: /732 x 580.*100\.0 MiB/ });
  t.match(show("x.html", "<b>hi</b>").preview, { type: "text", language: "html" }, "HTML is text here");
});

t.test("text, JSON, Markdown, logs", async (t) => {
  t.match(show("a.json", '{"a":[1]}').preview, { type: "json", value: { a: [1] } });
  t.match(show("a.json", "{broken").preview, { type: "text", language: "json", text: "{broken" });
  t.match(show("README.md", "# hi").preview, { type: "markdown", text: "# hi" });
  t.match(show("a.log", "\u001B[31mred\u001B[0m\u0007\nplain\n").preview, {
    type: "log",
    lines: [
      { n: 1, text: "red" },
      { n: 2, text: "plain" },
    ],
    totalLines: 2,
  });
  t.match(show("a.txt", Buffer.from([0xff, 0xfe, 0x41])).preview, { type: "none" });
  t.match(show("model.onnx", Buffer.from([8, 8, 0, 1])).preview, { type: "none", reason: /binary/ });
  t.match(show("empty.csv", "").preview, { type: "text", text: "" });
  const cut = Buffer.from("é".repeat(200_000)); // the read ends within a character
  t.match(show("a.txt", Buffer.concat([Buffer.from("x"), cut])).preview, { type: "text", truncated: true });
});

t.test("any bytes under any name", async (t) => {
  const names = fc.constantFrom(
    "a.csv",
    "a.tsv",
    "a.json",
    "a.md",
    "a.png",
    "a.svg",
    "a.jpg",
    "a.gif",
    "a.webp",
    "a.log",
    "a.txt",
    "a",
    "a.bin",
  );
  const heads = fc.oneof(
    fc.uint8Array({ maxLength: 300 }),
    fc.string({ unit: "binary", maxLength: 300 }).map((text) => Buffer.from(text)),
    fc
      .tuple(
        fc.constantFrom("89504e470d0a1a0a", "ffd8ffc0", "474946383961", "524946460000000057454250565038"),
        fc.uint8Array({ maxLength: 40 }),
      )
      .map(([magic, rest]) => Buffer.concat([Buffer.from(magic, "hex"), rest])),
  );
  fc.assert(
    fc.property(names, heads, fc.nat(1000), fc.integer({ min: 0, max: 20 }), (name, head, more, rows) => {
      const { preview } = show(name, Buffer.from(head), { sizeBytes: head.length + more, rows });
      previewSchema.parse(preview);
      return Buffer.byteLength(JSON.stringify(preview)) < 512 * 1024;
    }),
    { numRuns: 3000 },
  );
  t.pass("3,000 files: each a valid preview");
});

t.test("the policy's rows hold for every type, and a frame for every content", async (t) => {
  const rows = (n: number) => Array.from({ length: n }, (_, i) => `row ${i}, x`);
  const lines = rows(1000).join("\n");
  for (const name of ["a.txt", "a.md", "a.log", "a.csv", "a.py"]) {
    t.notMatch(JSON.stringify(boundPreview(show(name, lines).preview, 5)), "row 7", name);
  }
  t.notMatch(
    JSON.stringify(boundPreview(show("a.csv", `${lines}\n"open`).preview, 5)),
    "row 7",
    "a table that is none",
  );
  t.notMatch(
    JSON.stringify(boundPreview(show("a.json", JSON.stringify({ deep: { list: rows(100) } })).preview, 5)),
    "row 7",
  );
  t.notMatch(
    JSON.stringify(
      boundPreview(show("a.json", JSON.stringify(Object.fromEntries(rows(100).map((r) => [r, 1])))).preview, 5),
    ),
    "row 7",
  );
  t.same(boundPreview(show("a.txt", "1\n2\n3\n").preview, 3), show("a.txt", "1\n2\n3\n").preview);
  t.match(boundPreview(show("a.txt", "1\n2\n3\n4").preview, 3), { text: "1\n2\n3", truncated: true });
  for (const [name, content] of [
    ["a.txt", "\u0001".repeat(256 * 1024)],
    ["a.txt", '"\n'.repeat(128 * 1024)],
    ["a.json", JSON.stringify(Array.from({ length: 9000 }, (_, i) => ({ 'a"b': `"${i}"` })))],
    ["a.json", "[".repeat(100_000) + "]".repeat(100_000)],
    ["a.json", '{"a":'.repeat(5000) + "1" + "}".repeat(5000)],
    ["a.csv", `${"h,".repeat(600)}\n${'"""",'.repeat(100_000)}`],
    ["a.csv", `a,b\n${"\u20ac,\u20ac\n".repeat(60_000)}`],
    ["a.log", `${"\u20ac".repeat(80_000)}\n`],
    ["a.log", '"'.repeat(200_000)],
  ] as const) {
    const preview = boundPreview(show(name, content, { rows: 10_000 }).preview, 10_000);
    previewSchema.parse(preview);
    t.ok(Buffer.byteLength(JSON.stringify(preview)) <= 400 * 1024, `${name} ${preview.type}`);
  }
});
