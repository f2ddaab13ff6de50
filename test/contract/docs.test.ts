// Pages that follow the program: the reference of errors and the index of decisions say neither less nor more than there is.
import { readFileSync, readdirSync } from "node:fs";
import { ERROR_CODES } from "@sallyport/protocol";
import t from "tap";
import { decisionsIndex } from "./decisions-index.ts";
import { errorsPage } from "./errors-page.ts";

const docs = new URL("../../docs/", import.meta.url);
const read = (name: string): string => readFileSync(new URL(name, docs), "utf8");

t.test("docs/errors.md has every code, once, and no other", async (t) => {
  const page = read("errors.md");
  const told = [...page.matchAll(/^\| `([A-Z_]+)` \|/gm)].map((match) => match[1]!);
  t.same(told.toSorted(), Object.keys(ERROR_CODES).sort());
  t.equal(page, errorsPage(), "made anew by: node test/contract/errors-page.ts");
});

t.test("docs/decisions/README.md has every decision, once, by its title, and no other", async (t) => {
  const index = read("decisions/README.md");
  const listed = [...index.matchAll(/^- \[(\d{4})\]\((\S+)\) .+$/gm)].map(([, number, file]) => ({
    number: number!,
    file: file!,
  }));
  const there = readdirSync(new URL("decisions/", docs))
    .filter((name) => name !== "README.md")
    .sort();
  t.same(
    listed.map((line) => line.file),
    there,
    "in order of their numbers",
  );
  for (const { number, file } of listed) t.ok(file.startsWith(`${number}-`), `${file} has the number it is listed by`);
  t.equal(new Set(listed.map((line) => line.number)).size, listed.length, "no number is given twice");
  t.equal(index, decisionsIndex(), "made anew by: node test/contract/decisions-index.ts");
});
