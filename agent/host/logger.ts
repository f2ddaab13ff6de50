// The agent's log: JSON lines for machines, plain lines on a terminal; every line passes the redactor on its way out.
import { pino, stdTimeFunctions, type Logger } from "pino";
import type { Redactor } from "../redaction/redactor.ts";

export interface LoggerOptions {
  level: string;
  redactor: Redactor;
  /** Where lines go, newline included. */
  write(line: string): void;
  /** Lines for people instead of JSON. */
  pretty: boolean;
}

export function createLogger(options: LoggerOptions): Logger {
  const { redactor, write, pretty } = options;
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write: (line: string) => write(redactor.text(pretty ? plainLine(line) : line)) },
  );
}

/** `12:30:01 info  what was said  key=value` and below it the stack of an error, if there is one. */
function plainLine(line: string): string {
  const { time, level, msg, err, ...rest } = JSON.parse(line) as {
    time: string;
    level: string;
    msg?: string;
    err?: { stack?: string; message?: string };
  } & Record<string, unknown>;
  const pairs = Object.entries(rest).map(
    ([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`,
  );
  const head = [time.slice(11, 19), level.padEnd(5), msg ?? "", ...pairs].join(" ").trimEnd();
  return err === undefined ? `${head}\n` : `${head}\n  ${(err.stack ?? err.message ?? "").replaceAll("\n", "\n  ")}\n`;
}
