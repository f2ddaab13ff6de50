// npm test: installs what is missing, builds the page, runs every *.test.ts with tap under Node 24, and says at the
// end what was skipped and why. `npm test -- path/to/x.test.ts` runs that file alone. Fails on a failed test, and on
// a skipped one where CI is set. The last line is the count of tap's assertions: `N passed, N failed`.
import { createHash } from "node:crypto";
import { createWriteStream, existsSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LaunchError, ensureInstalled, ensureWeb, findNode24, root, run, say, script } from "./launch.mjs";

const tap = join(root, "node_modules/tap/dist/esm/run.mjs");

/** tap generates its test class from the list of plugins, into node_modules: again after each install. */
async function ensureTapBuilt() {
  const stamp = join(root, "node_modules/@tapjs/test/test-built/.sallyport-plugins");
  const version = readFileSync(join(root, "node_modules/tap/package.json"));
  const digest = createHash("sha256")
    .update(readFileSync(join(root, ".taprc")))
    .update(version)
    .digest("hex");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === digest) return;
  const code = await run(findNode24(), [tap, "build"], { stdio: ["ignore", 2, "inherit"], env: tapEnv() });
  if (code !== 0) throw new LaunchError(`tap could not be prepared: "tap build" ended with exit code ${code}.`);
  writeFileSync(stamp, digest);
}

/** The caller's environment without what another tap (this may itself run inside a test) or Node options put there. */
function tapEnv() {
  const entries = Object.entries(process.env).filter(([name]) => !/^(_?TAP(JS)?_|TAP$|NODE_OPTIONS$)/.test(name));
  return Object.fromEntries(entries);
}

/** A folder stands for the tests below it. */
function testsUnder(argument) {
  if (!statSync(argument, { throwIfNoEntry: false })?.isDirectory()) return [argument];
  const files = readdirSync(argument, { recursive: true }).map((name) => join(argument, name));
  return files.filter((file) => file.endsWith(".test.ts") && !file.includes("node_modules"));
}

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value, undefined, 2)) ?? "";
const indent = (value) => value.replace(/^/gm, "    ");

/** Reads the TAP of the run; prints a line for each file and each failure; keeps the counts. */
function tally(Parser) {
  const counts = { passed: 0, failed: 0, skipped: [] };

  const follow = (parser, path, within) => {
    parser.on("child", (child) => follow(child, [...path, child.name || "?"], within));
    parser.on("assert", (result) => {
      const label = [...path, result.name].filter(Boolean).join(" > ");
      if (result.skip || result.todo) {
        const reason = result.skip || result.todo;
        counts.skipped.push({ label, reason: reason === true ? "no reason given" : String(reason) });
      } else if (result.closingTestPoint) {
        // The sum of what came before; counted only when it fails by itself (exit code, timeout, plan).
        if (result.ok || within.failed > 0) return;
        counts.failed += 1;
        within.failed += 1;
        console.log(failure(label, result.diag ?? {}));
      } else if (result.ok) {
        counts.passed += 1;
        within.passed += 1;
      } else {
        counts.failed += 1;
        within.failed += 1;
        console.log(failure(label, result.diag ?? {}));
      }
    });
    parser.on("bailout", (reason) => say(`Bail out! ${reason}`));
  };

  const top = new Parser();
  const files = new Map();
  top.on("child", (file) => {
    const within = { passed: 0, failed: 0, skippedBefore: counts.skipped.length };
    files.set(file.name, within);
    follow(file, [file.name], within);
  });
  // A file's own point closes it, with its exit code: a crash without a failed assertion shows only here.
  top.on("assert", (result) => {
    const within = files.get(result.name) ?? { passed: 0, failed: 0, skippedBefore: counts.skipped.length };
    if (result.skip) {
      const reason = result.skip === true ? "no reason given" : result.skip;
      counts.skipped.push({ label: result.name, reason });
    } else if (!result.ok && within.failed === 0) {
      counts.failed += 1;
      within.failed += 1;
      console.log(failure(result.name, result.diag ?? {}));
    }
    const skipped = counts.skipped.length - within.skippedBefore;
    const parts = [`${within.passed} passed`];
    if (within.failed > 0) parts.push(`${within.failed} failed`);
    if (skipped > 0) parts.push(`${skipped} skipped`);
    const seconds = result.time ? `  ${(result.time / 1000).toFixed(1)} s` : "";
    console.log(`${within.failed > 0 ? "FAIL" : "ok  "} ${result.name}  ${parts.join(", ")}${seconds}`);
  });
  top.on("bailout", (reason) => {
    counts.failed += 1;
    say(`Bail out! ${reason}`);
  });
  top.on("extra", (line) => process.stdout.write(line));
  return { parser: top, counts };
}

function failure(label, diag) {
  const lines = [`\nFAIL ${label}`];
  const at = diag.at?.fileName ? `${diag.at.fileName}:${diag.at.lineNumber}` : undefined;
  if (at) lines.push(indent(`at ${at}`));
  for (const name of [
    "diff",
    "found",
    "wanted",
    "message",
    "tapError",
    "expired",
    "timeout",
    "exitCode",
    "signal",
    "source",
    "stack",
  ]) {
    const value = diag[name];
    if (value === undefined || value === null || (diag.diff && (name === "found" || name === "wanted"))) continue;
    lines.push(indent(`${name}: ${text(value).trimEnd()}`));
  }
  return `${lines.join("\n")}\n`;
}

await script(async () => {
  const asked = process.argv.slice(2).filter((argument) => argument !== "--");
  const named = asked.flatMap(testsUnder);
  // tap given no file runs them all: not what somebody meant who named a folder.
  if (asked.length > 0 && named.length === 0) throw new LaunchError(`no *.test.ts under ${asked.join(" ")}.`);
  await ensureInstalled();
  await ensureWeb().catch((error) => {
    if (named.length === 0) throw error;
    say("The page could not be built: tests that need it will fail."); // a named unit test does not
  });
  await ensureTapBuilt();
  const { Parser } = await import("tap-parser");
  const { parser, counts } = tally(Parser);
  mkdirSync(join(root, ".tap"), { recursive: true });
  const record = createWriteStream(join(root, ".tap/last-run.tap"));
  const code = await run(findNode24(), [tap, "run", "--reporter=tap", ...named], {
    env: tapEnv(),
    onLine: (line) => {
      record.write(`${line}\n`);
      parser.write(`${line}\n`);
    },
  });
  parser.end();
  record.end();

  if (counts.skipped.length > 0) {
    console.log("\nSkipped:");
    for (const { label, reason } of counts.skipped) console.log(`  ${label}\n      ${reason}`);
  }
  const refusesSkips = Boolean(process.env.CI) && counts.skipped.length > 0;
  if (refusesSkips) say("\nCI is set: a skipped test is a failure.");
  if (code !== 0 && counts.failed === 0) {
    counts.failed = 1;
    say(`\nFAIL tap itself ended with exit code ${code}; its output is in .tap/last-run.tap`);
  }
  const skipped = counts.skipped.length > 0 ? `, ${counts.skipped.length} skipped` : "";
  console.log(`\n${counts.passed} passed, ${counts.failed} failed${skipped}`);
  return counts.failed > 0 || refusesSkips || counts.passed === 0 ? 1 : 0;
});
