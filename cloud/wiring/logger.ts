// The program's log: JSON lines on stderr, or short lines for a person at a terminal. stdout is for answers.
import { pino, type Logger } from "pino";

const LEVELS: Record<number, string> = { 10: "trace", 20: "debug", 30: "info ", 40: "warn ", 50: "error", 60: "fatal" };
const HIDDEN = new Set(["level", "time", "msg", "pid", "hostname", "program", "reqId"]);
const plain = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

/** One JSON line of pino's as a person reads it. */
export function prettyLine(line: string): string {
  const { level, time, msg, err, ...rest } = JSON.parse(line) as {
    level: number;
    time: number;
    msg?: string;
    err?: { message?: string; stack?: string };
  } & Record<string, unknown>;
  const fields = Object.entries(rest).flatMap(([name, value]) =>
    HIDDEN.has(name) || value === undefined ? [] : [`${name}=${plain(value)}`],
  );
  const head = `${new Date(time).toISOString().slice(11, 23)} ${LEVELS[level] ?? level} ${msg ?? ""}`;
  // Control bytes of a peer's text must not reach the terminal.
  const text = `${head}${fields.length > 0 ? `  ${fields.join(" ")}` : ""}${err === undefined ? "" : `\n${err.stack ?? err.message ?? ""}`}`;
  // eslint-disable-next-line no-control-regex
  return `${text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/g, "?")}\n`;
}

/** Lines of so long go as one write: one by one they cost a request a turn of the thread pool each. */
const GATHER_MS = 10;
const GATHER_CHARACTERS = 64 * 1024;

/** Lines in order, a moment late; whatever is left when the program ends is written then. */
function gathered(out: ReturnType<typeof pino.destination>): {
  write(line: string): void;
  flush(done?: (error?: Error) => void): void;
  flushSync(): void;
} {
  let lines: string[] = [];
  let characters = 0;
  let timer: NodeJS.Timeout | null = null;
  const pass = (): void => {
    if (timer !== null) clearTimeout(timer);
    timer = null;
    if (lines.length === 0) return;
    const text = lines.join("");
    lines = [];
    characters = 0;
    out.write(text);
  };
  // Before the destination's own, which writes what it was given and closes.
  process.prependListener("beforeExit", pass);
  process.prependListener("exit", pass);
  return {
    write(line) {
      lines.push(line);
      characters += line.length;
      if (characters >= GATHER_CHARACTERS) pass();
      else timer ??= setTimeout(pass, GATHER_MS).unref();
    },
    flush(done) {
      pass();
      out.flush(done);
    },
    flushSync() {
      pass();
      out.flushSync();
    },
  };
}

export function makeLogger(level: string, terminal: boolean): Logger {
  const options = { level, base: { program: "sallyport-cloud" } };
  if (!terminal) return pino(options, gathered(pino.destination({ fd: 2, sync: false })));
  return pino(options, { write: (line: string) => void process.stderr.write(prettyLine(line)) });
}
