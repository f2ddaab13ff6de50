// Walks the chain of the audit log and names the first record that is not as it was written. Reads only.
import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { auditFiles, CURRENT, GENESIS, readAuditLine } from "./file-audit.ts";

export type AuditVerdict =
  /** `firstSeq` is above 1 when older files were removed by the cap, which a record attests. */
  | { sound: true; records: number; firstSeq: number; lastSeq: number; lastHash: string; files: number }
  | { sound: false; file: string; line: number; seq: number | null; problem: string };

export async function verifyAudit(folder: string): Promise<AuditVerdict> {
  const files = await auditFiles(folder);
  let previous: { seq: number; hash: string } | null = null;
  let first: { seq: number; prev: string; file: string } | null = null;
  const removals = new Set<string>();
  let records = 0;
  for (const file of files) {
    let line = 0;
    const bytes = file === CURRENT ? await wholeLines(join(folder, file)) : Infinity;
    if (bytes === 0) continue;
    const input = createReadStream(join(folder, file), { end: bytes - 1 });
    for await (const text of createInterface({ input, crlfDelay: Infinity })) {
      line++;
      const bad = (problem: string, seq: number | null): AuditVerdict => ({ sound: false, file, line, seq, problem });
      const read = readAuditLine(text);
      if (read === null) return bad("it is no record", null);
      const { record, hash, sound } = read;
      if (!sound) return bad("its hash is not that of its bytes", record.seq);
      if (previous !== null) {
        if (record.seq !== previous.seq + 1)
          return bad(`record ${previous.seq + 1} was expected: records are missing or out of order`, record.seq);
        if (record.prev !== previous.hash) return bad("it does not follow the record before it", record.seq);
      }
      first ??= { seq: record.seq, prev: record.prev, file };
      if (record["event"] === "audit.removed") removals.add(String(record["note"]));
      previous = { seq: record.seq, hash };
      records++;
    }
  }
  if (first === null || previous === null)
    return { sound: true, records: 0, firstSeq: 0, lastSeq: 0, lastHash: GENESIS, files: files.length };
  const begins = first.seq === 1 ? first.prev === GENESIS : removals.has(`${first.seq - 1} ${first.prev}`);
  if (!begins) {
    return {
      sound: false,
      file: first.file,
      line: 1,
      seq: first.seq,
      problem:
        first.seq === 1
          ? "it names a record before the first"
          : `records 1 to ${first.seq - 1} are gone and no record says that they were removed`,
    };
  }
  return {
    sound: true,
    records,
    firstSeq: first.seq,
    lastSeq: previous.seq,
    lastHash: previous.hash,
    files: files.length,
  };
}

/** Bytes up to the last newline: an agent may be writing, and a crash may have cut off what nobody was promised. */
async function wholeLines(path: string): Promise<number> {
  const handle = await open(path, "r");
  try {
    const { size } = await handle.stat();
    const tail = Buffer.alloc(Math.min(size, 64 * 1024));
    await handle.read(tail, 0, tail.length, size - tail.length);
    return size - tail.length + tail.lastIndexOf(10) + 1;
  } finally {
    await handle.close();
  }
}
