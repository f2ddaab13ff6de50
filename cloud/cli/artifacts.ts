// `sallyport artifact`: ls, stat, preview, get, put, rm. A place is written pool/store/path.
import { createReadStream, createWriteStream, renameSync, rmSync, statSync } from "node:fs";
import { once } from "node:events";
import type { IncomingMessage } from "node:http";
import type { Command } from "commander";
import type { ArtifactEntry, Preview } from "@sallyport/protocol";
import type { Client } from "./client.ts";
import { ApiFailure, EndWith, EXIT } from "./exit.ts";
import { age, bytes, formatOf, print, printOne, Progress } from "./output.ts";
import { tame } from "./tame.ts";

interface Place {
  api: string;
  path: string;
  text: string;
}

function placeOf(text: string): Place {
  const [pool, store, ...path] = text.split("/");
  if (!pool || !store)
    throw new EndWith(EXIT.usage, `${text} is not a place; write pool/store/path, e.g. lab/lake/data/train.csv`);
  return {
    api: `/v1/pools/${encodeURIComponent(pool)}/stores/${encodeURIComponent(store)}`,
    path: path.join("/").replace(/\/$/, ""),
    text,
  };
}
const at = (path: string): string => `path=${encodeURIComponent(path)}`;

/** How often a download that broke is taken up again before it is given up; each success starts the count anew. */
const RESUMES = 5;

export function artifactCommands(program: Command, client: () => Client): void {
  const artifact = program.command("artifact").description("look at, fetch and store artifacts, through the agent");

  artifact
    .command("ls")
    .description("list a folder of a store")
    .argument("<place>", "pool/store[/path]")
    .option("-o, --output <format>", "table, json or name", "table")
    .action(async (text: string, options: { output: string }) => {
      const place = placeOf(text);
      const format = formatOf(options.output);
      const entries: ArtifactEntry[] = [];
      let cursor: string | null = null;
      do {
        const page: { entries: ArtifactEntry[]; nextCursor: string | null } = await client().json(
          `${place.api}/artifacts?${at(place.path)}&limit=1000${cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`}`,
        );
        entries.push(...page.entries);
        cursor = page.nextCursor;
      } while (cursor !== null);
      print(
        entries,
        format,
        [
          { title: "NAME", of: (e) => (e.kind === "tree" ? `${e.name}/` : e.name) },
          { title: "SIZE", of: (e) => (e.sizeBytes === null ? "-" : bytes(e.sizeBytes)) },
          { title: "MODIFIED", of: (e) => (e.modifiedAt === null ? "-" : new Date(e.modifiedAt).toISOString()) },
          { title: "TYPE", of: (e) => e.mediaType ?? "-" },
        ],
        (e) => e.path,
      );
    });

  artifact
    .command("stat")
    .description("size, time, version and digest of an artifact")
    .argument("<place>", "pool/store/path")
    .option("--digest", "compute the sha-256 on the agent")
    .option("-o, --output <format>", "table, json or name", "table")
    .action(async (text: string, options: { digest?: boolean; output: string }) => {
      const place = placeOf(text);
      const found = await client().json<ArtifactEntry & { digest: string | null }>(
        `${place.api}/stat?${at(place.path)}&digest=${options.digest === true}`,
      );
      printOne(
        found,
        formatOf(options.output),
        [
          ["path", found.path],
          ["kind", found.kind],
          ["size", found.sizeBytes === null ? null : `${bytes(found.sizeBytes)} (${found.sizeBytes} bytes)`],
          [
            "modified",
            found.modifiedAt === null
              ? null
              : `${new Date(found.modifiedAt).toISOString()} (${age(found.modifiedAt)} ago)`,
          ],
          ["type", found.mediaType],
          ["version", found.version],
          ["digest", found.digest],
        ],
        found.path,
      );
    });

  artifact
    .command("preview")
    .description("show a bounded preview, made on the agent")
    .argument("<place>", "pool/store/path")
    .option("--rows <n>", "rows of a table", "20")
    .option("-o, --output <format>", "table or json", "table")
    .action(async (text: string, options: { rows: string; output: string }) => {
      const place = placeOf(text);
      const found = await client().json<{ preview: Preview; sizeBytes: number; mediaType: string }>(
        `${place.api}/preview?${at(place.path)}&rows=${encodeURIComponent(options.rows)}`,
      );
      if (formatOf(options.output) === "json") return void process.stdout.write(`${JSON.stringify(found, null, 2)}\n`);
      show(found.preview, found.mediaType, found.sizeBytes);
    });

  artifact
    .command("get")
    .description("fetch a file; a broken download is taken up where it stopped")
    .argument("<place>", "pool/store/path")
    .argument("[file]", "where to put it; - is stdout; default: its own name")
    .action(async (text: string, file: string | undefined) => {
      const place = placeOf(text);
      const target = file ?? place.path.slice(place.path.lastIndexOf("/") + 1);
      if (target === "") throw new EndWith(EXIT.usage, `${text} names a store, not a file`);
      await download(client(), place, target);
    });

  artifact
    .command("put")
    .description("store a file; refuses to replace one unless told to")
    .argument("<file>", "what to send; - is stdin")
    .argument("<place>", "pool/store/path")
    .option("--replace", "replace what is there")
    .option("--if-match <version>", "replace this version only")
    .option("-o, --output <format>", "table, json or name", "table")
    .action(async (file: string, text: string, options: { replace?: boolean; ifMatch?: string; output: string }) => {
      const place = placeOf(text);
      const size = file === "-" ? null : sizeOf(file);
      const progress = new Progress(`sending ${place.path}`);
      let sent = 0;
      const body = async function* () {
        for await (const chunk of file === "-"
          ? process.stdin
          : createReadStream(file, { highWaterMark: 256 * 1024 })) {
          sent += (chunk as Buffer).length;
          progress.update(sent, size);
          yield chunk as Buffer;
        }
      };
      const condition: Record<string, string> =
        options.ifMatch !== undefined
          ? { "if-match": quoted(options.ifMatch) }
          : options.replace === true
            ? {}
            : { "if-none-match": "*" };
      const written = await client().json<{ path: string; sizeBytes: number; digest: string; version: string }>(
        `${place.api}/content?${at(place.path)}`,
        {
          method: "PUT",
          body: body(),
          headers: {
            "content-type": "application/octet-stream",
            ...(size === null ? {} : { "content-length": String(size) }),
            ...condition,
          },
        },
      );
      progress.done();
      printOne(
        written,
        formatOf(options.output),
        [
          ["path", written.path],
          ["size", bytes(written.sizeBytes)],
          ["digest", written.digest],
          ["version", written.version],
        ],
        written.path,
      );
    });

  artifact
    .command("rm")
    .description("delete a file")
    .argument("<place>", "pool/store/path")
    .option("--if-match <version>", "delete this version only")
    .action(async (text: string, options: { ifMatch?: string }) => {
      const place = placeOf(text);
      const response = await client().open(`${place.api}/content?${at(place.path)}`, {
        method: "DELETE",
        headers: options.ifMatch === undefined ? {} : { "if-match": quoted(options.ifMatch) },
      });
      response.resume();
      process.stderr.write(`deleted ${place.text}\n`);
    });
}

/** A version as it is shown, or an ETag as it came. What an ETag cannot hold is percent-encoded, as the API does. */
const quoted = (version: string): string =>
  /^"[!#-~]*"$/.test(version)
    ? version
    : `"${[...version].map((c) => (/^[!#$&-~]$/.test(c) ? c : [...Buffer.from(c)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`).join(""))).join("")}"`;

/** Null where the size is not known beforehand, as of a pipe. */
function sizeOf(file: string): number | null {
  try {
    const found = statSync(file);
    if (found.isDirectory()) throw new EndWith(EXIT.usage, `${file} is a folder; put sends one file`);
    return found.isFile() ? found.size : null;
  } catch (error) {
    if (error instanceof EndWith) throw error;
    throw new EndWith(
      EXIT.usage,
      `${file} cannot be read: ${(error as NodeJS.ErrnoException).code === "ENOENT" ? "there is no such file" : (error as Error).message}`,
    );
  }
}

/** Into a file beside the target, renamed when whole: what was there stays until then. */
async function download(client: Client, place: Place, target: string): Promise<void> {
  const aside = target === "-" ? null : `${target}.part-${process.pid}`;
  let out: NodeJS.WritableStream | null = null;
  let failed = null as Error | null;
  const progress = new Progress(`fetching ${place.path}`);
  let done = 0;
  let total: number | null = null;
  let etag: string | null = null;
  let left = RESUMES;
  try {
    for (;;) {
      let response: IncomingMessage;
      try {
        response = await client.open(`${place.api}/content?${at(place.path)}`, {
          headers: done === 0 ? {} : { range: `bytes=${done}-`, "if-match": etag ?? "*" },
        });
      } catch (error) {
        const passing =
          error instanceof ApiFailure ? ["AGENT_OFFLINE", "LINK_LOST"].includes(error.problem.code) : true;
        if (done === 0 || !passing || left-- === 0) throw error;
        await new Promise((again) => setTimeout(again, 2_000));
        continue;
      }
      etag ??= response.headers.etag ?? null;
      total ??= Number(response.headers["content-length"] ?? NaN);
      if (out === null) {
        out = aside === null ? process.stdout : createWriteStream(aside, { mode: 0o600 });
        out.on("error", (error: Error) => (failed = error));
      }
      try {
        for await (const chunk of response) {
          if (failed !== null) throw failed;
          done += (chunk as Buffer).length;
          left = RESUMES;
          if (!out.write(chunk as Buffer)) await once(out, "drain");
          progress.update(done, Number.isNaN(total) ? null : total);
        }
      } catch (error) {
        if (failed !== null || etag === null || left-- === 0) throw error;
        process.stderr.write(
          `${process.stderr.isTTY ? "\r\u001B[2K" : ""}the connection broke after ${bytes(done)}; going on from there\n`,
        );
        continue;
      }
      if (Number.isNaN(total) || done >= total) break;
      if (left-- === 0) throw new EndWith(EXIT.failed, `${place.text} ended after ${done} of ${total} bytes`);
    }
    progress.done();
    if (aside !== null) {
      await new Promise<void>((resolve, reject) =>
        (out as ReturnType<typeof createWriteStream>).end((error?: Error | null) =>
          error ? reject(error) : resolve(),
        ),
      );
      renameSync(aside, target);
      process.stderr.write(`${target}: ${bytes(done)}\n`);
    }
  } catch (error) {
    progress.done();
    if (aside !== null) rmSync(aside, { force: true });
    if (failed !== null) throw new EndWith(EXIT.failed, `${target} cannot be written: ${failed.message}`);
    throw error;
  }
}

function show(preview: Preview, mediaType: string, sizeBytes: number): void {
  const out = (text: string) => process.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
  switch (preview.type) {
    case "text":
    case "markdown":
    case "json":
      out(tame(preview.text));
      break;
    case "log":
      for (const line of preview.lines) out(`${String(line.n).padStart(6)}  ${tame(line.text)}`);
      break;
    case "table":
      print(
        preview.rows,
        "table",
        preview.columns.map((column, index) => ({
          title: column.name,
          of: (row: (string | number | boolean | null)[]) => String(row[index] ?? ""),
        })),
        () => "",
      );
      if (preview.totalRows !== null) process.stderr.write(`${preview.rows.length} of ${preview.totalRows} rows\n`);
      break;
    case "image":
      out(
        `${mediaType}, ${preview.width ?? "?"} x ${preview.height ?? "?"}, ${bytes(sizeBytes)}; fetch it with: sallyport artifact get`,
      );
      break;
    case "none":
      out(`no preview: ${preview.reason} (${mediaType}, ${bytes(sizeBytes)})`);
      break;
  }
}
