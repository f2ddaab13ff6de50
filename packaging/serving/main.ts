// The program `sallyport-serving`: serves one ONNX model by Open Inference Protocol v2 over HTTP, as a process of its
// own that an agent starts (or anyone else: see README.md). Knows nothing of agents and clouds, imports none of the
// project's other workspaces, and nothing imports it. Arguments and signals come in here, exit codes go out.
import { chmodSync, readFileSync, unlinkSync } from "node:fs";
import { connect, type Server } from "node:net";
import { setFlagsFromString } from "node:v8";
import { readArguments, usage, type Address, type Arguments } from "./arguments.ts";
import { EXIT, StartError } from "./errors.ts";
import { Metrics } from "./metrics.ts";
import { ModelHost } from "./model-host.ts";
import { PLATFORM, ServingServer } from "./server.ts";

/** For the model's thread to end, once the last request has. */
const THREAD_END_MS = 2000;

// The compiled tree has its package.json beside it as well.
const { version: serverVersion } = JSON.parse(readFileSync(new URL("./package.json", import.meta.url), "utf8")) as {
  version: string;
};

// Both threads' heaps for new objects stay small. Grown, they hold 100 MB more of garbage and serve no more requests a
// second (measured: 167 MB resident beside 273). Read at each collection, so it may be set after the start.
setFlagsFromString("--semi-space-growth-factor=1");

/** One line of JSON per event, none per request. Where nobody reads any more, the program goes on. */
process.stderr.on("error", () => {});
const say = (event: string, details: Record<string, unknown> = {}): void =>
  void process.stderr.write(`${JSON.stringify({ time: new Date().toISOString(), event, ...details })}\n`);

/** The last line that this process writes; the agent reads its code. */
function fail(error: StartError): never {
  process.stderr.write(`${JSON.stringify({ code: error.code, message: error.message })}\n`);
  process.exit(EXIT[error.code]);
}

/** True when it settled in time, one way or the other. */
const within = (promise: Promise<unknown>, ms: number): Promise<boolean> => {
  const { promise: late, resolve } = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => resolve(false), ms);
  return Promise.race([
    promise.then(
      () => true,
      () => true,
    ),
    late,
  ]).finally(() => clearTimeout(timer));
};

function listenOnce(server: Server, address: Address): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  const on = "socket" in address ? { path: address.socket } : { port: address.port, host: address.host };
  server.listen(on, () => {
    server.off("error", reject);
    resolve();
  });
  return promise;
}

/** True when a process listens at this socket; a file that a killed one left behind refuses the connection. */
function isServed(path: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const probe = connect(path);
  probe.once("connect", () => resolve(true));
  probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code !== "ECONNREFUSED"));
  return promise.finally(() => probe.destroy());
}

async function listen(server: Server, address: Address): Promise<void> {
  try {
    try {
      await listenOnce(server, address);
    } catch (error) {
      const taken = (error as NodeJS.ErrnoException).code === "EADDRINUSE";
      if (!taken || !("socket" in address) || (await isServed(address.socket))) throw error;
      unlinkSync(address.socket);
      await listenOnce(server, address);
    }
    if ("socket" in address) chmodSync(address.socket, 0o600);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "unknown";
    const what = "socket" in address ? "The socket" : `Port ${address.port} at ${address.host}`;
    if (code === "EADDRINUSE") throw new StartError("PORT_TAKEN", `${what} is taken by another process.`);
    throw new StartError("PORT_TAKEN", `${what} cannot be listened on: ${code}.`);
  }
}

async function run(args: Arguments): Promise<void> {
  const { name, modelVersion, threads } = args;
  const metrics = new Metrics({ name, version: modelVersion, platform: PLATFORM });
  const host = new ModelHost({
    file: args.model,
    threads,
    name,
    version: modelVersion,
    inFlightMax: args.inFlightMax,
    deadlineMs: args.deadlineMs,
    onRun: (runMs) => metrics.ran(runMs / 1000),
  });
  const server = new ServingServer(
    {
      name,
      version: modelVersion,
      serverVersion,
      token: args.token,
      bodyBytesMax: args.bodyBytesMax,
      receiveMs: args.receiveMs,
      idleMs: args.receiveMs + args.deadlineMs + 30_000,
    },
    host,
    metrics,
  );

  let stopping = false;
  const stop = async (signal: string): Promise<void> => {
    if (stopping) return;
    stopping = true;
    say("stopping", { signal, inFlight: host.inFlight });
    const begin = performance.now();
    const finished = await within(server.stop(), args.graceMs);
    const cut = finished ? 0 : host.inFlight;
    if (!finished) server.http.closeAllConnections();
    host.stop();
    // A model that is still being loaded has what is left of the time.
    const restMs = finished ? args.graceMs - (performance.now() - begin) : 0;
    const ended = await within(host.ended, Math.max(THREAD_END_MS, restMs));
    say("stopped", { cut });
    if (ended) process.exit(0);
    // A thread inside the runtime cannot be ended, and exit() would wait for it.
    process.kill(process.pid, "SIGKILL");
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => void stop(signal));

  // Nobody else may connect in the moment between the socket's making and its mode.
  process.umask(0o177);
  await listen(server.http, args.address);
  const bound = server.http.address();
  say("listening", {
    name,
    version: modelVersion,
    ...(bound !== null && typeof bound === "object" ? { port: bound.port } : {}),
    pid: process.pid,
  });

  try {
    const { signature, notServed, loadMs } = await host.loaded;
    server.loaded(signature);
    say("loaded", { ...signature, notServed, loadMs: Math.round(loadMs) });
    await host.ended;
  } catch (error) {
    // While stopping, a thread that is no more is what was asked for.
    if (!stopping) throw error;
  }
}

try {
  const args = readArguments(process.argv.slice(2), process.env["SALLYPORT_SERVING_TOKEN"], process.cwd());
  // What a model's code might look for, should one ever run here.
  delete process.env["SALLYPORT_SERVING_TOKEN"];
  if (args === "help") process.stdout.write(usage);
  else await run(args);
} catch (error) {
  fail(error instanceof StartError ? error : new StartError("INTERNAL", "The program could not be started."));
}
