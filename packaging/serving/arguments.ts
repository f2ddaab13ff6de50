// The command line, read and checked; `usage` says the same in words. Pure: nothing is opened or started here.
import { relative } from "node:path";
import { parseArgs } from "node:util";
import { StartError } from "./errors.ts";

export type Address = { socket: string } | { port: number; host: string };

export interface Arguments {
  model: string;
  name: string;
  modelVersion: string;
  address: Address;
  threads: number;
  token: string | undefined;
  bodyBytesMax: number;
  inFlightMax: number;
  deadlineMs: number;
  receiveMs: number;
  graceMs: number;
}

export const usage = `sallyport-serving: one ONNX model by Open Inference Protocol v2 over HTTP

  --model <file>              the model, one ONNX file that holds everything
  --name <name>               what the model is called in paths
  --model-version <version>   its version in paths and replies
  --socket <path>             listen on a unix socket (mode 0600), or
  --port <n> [--host <addr>]  on TCP (host: 127.0.0.1), with a token in SALLYPORT_SERVING_TOKEN
  --threads <n>               threads of one computation (1)
  --max-body-bytes <n>        largest request (33554432, 32 MiB)
  --max-in-flight <n>         requests waiting or being computed; more are answered 503 (64)
  --deadline-ms <n>           from a request's last byte to its reply; later is 504 (30000)
  --receive-ms <n>            for a request to arrive whole; later is 408 (30000)
  --grace-ms <n>              for requests under way after SIGTERM (20000)
`;

/** sun_path has 108 bytes with its closing NUL. */
const SOCKET_BYTES_MAX = 107;

const wrong = (message: string): StartError => new StartError("USAGE", message);

function whole(option: string, value: string, low: number, high: number): number {
  const number = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN;
  if (!(number >= low && number <= high)) throw wrong(`--${option}: expected a whole number from ${low} to ${high}.`);
  return number;
}

export function readArguments(args: readonly string[], token: string | undefined, cwd: string): Arguments | "help" {
  const text = { type: "string" } as const;
  let given;
  try {
    given = parseArgs({
      args: [...args],
      strict: true,
      options: {
        model: text,
        name: text,
        "model-version": text,
        socket: text,
        port: text,
        host: text,
        threads: { ...text, default: "1" },
        "max-body-bytes": { ...text, default: String(32 * 1024 * 1024) },
        "max-in-flight": { ...text, default: "64" },
        "deadline-ms": { ...text, default: "30000" },
        "receive-ms": { ...text, default: "30000" },
        "grace-ms": { ...text, default: "20000" },
        help: { type: "boolean" },
      },
    }).values;
  } catch (error) {
    throw wrong(error instanceof Error ? error.message : String(error));
  }
  if (given.help === true) return "help";
  const required = (option: "model" | "name" | "model-version"): string => {
    const value = given[option];
    if (value === undefined || value === "") throw wrong(`--${option} is missing.`);
    return value;
  };
  return {
    model: required("model"),
    name: required("name"),
    modelVersion: required("model-version"),
    address: readAddress(given.socket, given.port, given.host, token, cwd),
    threads: whole("threads", given.threads, 1, 1024),
    // Set but empty is a mistake of whoever set it, not "no token".
    token: token === "" ? bad("SALLYPORT_SERVING_TOKEN is empty: expected a token, or no such variable.") : token,
    bodyBytesMax: whole("max-body-bytes", given["max-body-bytes"], 1024, 1024 ** 3),
    inFlightMax: whole("max-in-flight", given["max-in-flight"], 1, 100_000),
    deadlineMs: whole("deadline-ms", given["deadline-ms"], 1, 3_600_000),
    receiveMs: whole("receive-ms", given["receive-ms"], 1, 3_600_000),
    graceMs: whole("grace-ms", given["grace-ms"], 0, 3_600_000),
  };
}

function bad(message: string): never {
  throw wrong(message);
}

function readAddress(
  socket: string | undefined,
  port: string | undefined,
  host: string | undefined,
  token: string | undefined,
  cwd: string,
): Address {
  if ((socket === undefined) === (port === undefined)) throw wrong("Expected either --socket or --port.");
  if (socket === undefined) {
    if (token === undefined) throw wrong("--port: expected a token in SALLYPORT_SERVING_TOKEN.");
    return { port: whole("port", port ?? "", 0, 65_535), host: host ?? "127.0.0.1" };
  }
  if (host !== undefined) throw wrong("--host belongs to --port, not to --socket.");
  if (socket === "") throw wrong("--socket is empty: expected a path.");
  // A long path may still be short from here.
  const path = [socket, relative(cwd, socket)].find(
    (form) => form !== "" && Buffer.byteLength(form) <= SOCKET_BYTES_MAX,
  );
  if (path === undefined)
    throw wrong(
      `--socket: the path has ${Buffer.byteLength(socket)} bytes, a unix socket's at most ${SOCKET_BYTES_MAX}; give one relative to the working directory.`,
    );
  return { socket: path };
}
