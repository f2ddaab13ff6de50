// The process host's door: a unix socket in the state directory. Node cannot ask the kernel who a peer is, so a peer
// shows a token from a file that only the agent's user can read; folder, socket and file are that user's alone.
import { timingSafeEqual } from "node:crypto";
import { chmodSync, mkdirSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import type { Clock, Timer } from "@sallyport/protocol";
import type { WorkSpec } from "../engine.ts";
import { hostToken } from "./host-token.ts";
import { ProcessHost } from "./process-host.ts";
import { HOST_PROTOCOL, lineSplitter, type HostAnswer, type HostHello, type HostRequest } from "./wire.ts";

/** A peer that has not shown the token by then is cut off. */
const HELLO_MS = 5000;
/** Without work and without an agent, the host ends itself after this. */
export const IDLE_MS = 10 * 60_000;

/** Null when another host owns the folder. The lock is the kernel's: it goes with the process that holds it. */
function lockFolder(folder: string): DatabaseSync | null {
  const lock = new DatabaseSync(join(folder, "lock.db"), { timeout: 0 });
  try {
    lock.exec("BEGIN EXCLUSIVE");
    return lock;
  } catch (error) {
    lock.close();
    // SQLITE_BUSY
    if ((error as { errcode?: number }).errcode === 5) return null;
    throw error;
  }
}

export interface HostServer {
  /** Resolves when it has ended by itself or was closed. */
  readonly ended: Promise<void>;
  close(): void;
}

/**
 * Serves `<state>/host`. Null when another host serves it already. The process must be in `folder` (its socket's full
 * path may be longer than a socket's address can be).
 */
export function startHostServer(folder: string, clock: Clock, idleMs = IDLE_MS): HostServer | null {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  chmodSync(folder, 0o700);
  const lock = lockFolder(folder);
  if (lock === null) return null;
  const token = Buffer.from(hostToken(folder));
  const peers = new Set<Socket>();
  let idle: Timer | null = null;
  let closed = false;
  let finish!: () => void;
  const ended = new Promise<void>((resolve) => (finish = resolve));

  const host = new ProcessHost(join(folder, "work"), clock, () => consider());
  const server: Server = createServer((socket) => serve(socket));
  function consider(): void {
    // Called by the host's constructor too, before there is a host.
    queueMicrotask(() => {
      idle?.cancel();
      idle = null;
      if (!closed && peers.size === 0 && host.running === 0) idle = clock.after(idleMs, close, { keepAlive: true });
    });
  }
  function close(): void {
    if (closed) return;
    closed = true;
    idle?.cancel();
    server.close();
    for (const socket of peers) socket.destroy();
    rmSync("host.sock", { force: true });
    lock?.close();
    finish();
  }
  function serve(socket: Socket): void {
    peers.add(socket);
    consider();
    let greeted = false;
    const deadline = clock.after(HELLO_MS, () => socket.destroy());
    socket.on("error", () => socket.destroy());
    socket.once("close", () => {
      deadline.cancel();
      peers.delete(socket);
      consider();
    });
    const send = (value: unknown): void => {
      if (!socket.destroyed) socket.write(`${JSON.stringify(value)}\n`);
    };
    const split = lineSplitter((text) => {
      const message = JSON.parse(text) as HostHello | HostRequest;
      if (!greeted) {
        const shown = Buffer.from("token" in message ? String(message.token) : "");
        if (shown.length !== token.length || !timingSafeEqual(shown, token)) return void socket.destroy();
        greeted = true;
        deadline.cancel();
        return send({ protocol: HOST_PROTOCOL, pid: process.pid });
      }
      const request = message as HostRequest;
      if (request.op === "quit") {
        const idleNow = host.running === 0;
        send({ id: request.id, output: idleNow } satisfies HostAnswer);
        if (idleNow) socket.end(close);
        return;
      }
      perform(host, request).then(
        (output) => send({ id: request.id, output } satisfies HostAnswer),
        (error: unknown) =>
          send({ id: request.id, error: error instanceof Error ? error.message : String(error) } satisfies HostAnswer),
      );
    });
    socket.on("data", (chunk) => {
      try {
        split(chunk);
      } catch {
        socket.destroy();
      }
    });
  }

  rmSync("host.sock", { force: true });
  server.listen("host.sock", () => chmodSync("host.sock", 0o600));
  consider();
  return { ended, close };
}

async function perform(host: ProcessHost, request: HostRequest): Promise<unknown> {
  const input = request.input as { name: string; spec: WorkSpec; graceMs: number };
  switch (request.op) {
    case "start":
      return host.start(input.spec);
    case "status":
      return host.status(input.name);
    case "ended":
      return (await host.ended(input.name)) ?? { state: "absent" };
    case "stop":
      return host.stop(input.name, input.graceMs);
    case "list":
      return host.list();
    case "forget":
      host.forget(input.name);
      return null;
    default:
      throw new Error(`this process host does not know ${String(request.op)}`);
  }
}
