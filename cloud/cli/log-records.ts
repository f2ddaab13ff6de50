// Log records as lines: output of the program to the output that it wrote to, gaps and our own words apart from it.
import { readNdjson, type LogRecord } from "@sallyport/protocol";
import { paint } from "./output.ts";
import { tame } from "./tame.ts";

/** `label`: put before each line, where several logs are shown; empty = none. */
export async function printRecords(response: AsyncIterable<Buffer>, label = ""): Promise<void> {
  const prefix = label === "" ? "" : `${paint(label, "blue")} `;
  for await (const value of readNdjson(response)) {
    const record = value as LogRecord;
    if ("gap" in record)
      process.stderr.write(`${prefix}[${record.to - record.from + 1} records are missing: ${record.reason}]\n`);
    else {
      const text = tame(record.body.data).replace(/\n$/, "");
      const out = record.stream === "stderr" ? process.stderr : process.stdout;
      out.write(`${prefix}${record.stream === "system" ? paint(text, "grey") : text}\n`);
    }
  }
}
