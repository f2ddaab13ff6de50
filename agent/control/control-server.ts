// The control socket: NDJSON requests {n, op, args} and answers {n, value} or {n, error}; who speaks HTTP to it (curl
// --unix-socket, a scraper) gets probes and figures. Who may speak is decided by
// the kernel: the socket is the owner's alone, in a directory that is the owner's alone.
import { chmodSync, rmSync } from "node:fs";
import { createServer as createHttpServer, type RequestListener, type Server as HttpServer } from "node:http";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { ConnectorError, ndjsonLine, readNdjson, toConnectorError, type ErrorBody } from "@sallyport/protocol";
import { z } from "zod";
import type { PsAnswer } from "./ps.ts";
import { SOCKET, socketAddress } from "./socket-path.ts";

/** What the agent can be asked at its host. */
export interface ControlOperations {
  ps(): Promise<PsAnswer>;
  pause(pause: { reason: string; until: number | null }): Promise<{ paused: true }>;
  /** `paused`: whether it had been. */
  resume(): Promise<{ paused: boolean }>;
  /** `id`: a run, a command, or a step as ps names it; null = everything. Answers with what was stopped. */
  stop(id: string | null): Promise<{ stopped: string[] }>;
  ready(): Promise<{ ready: boolean; why: string }>;
  /** Of every deployment, with the key that opens it: for the owner of the state directory alone. */
  endpoints(): Promise<LocalEndpoint[]>;
}

export interface LocalEndpoint {
  /** Of the deployment. */
  name: string;
  url: string;
  key: string;
  ready: number;
  wanted: number;
}

const requestSchema = z.discriminatedUnion("op", [
  z.strictObject({ op: z.literal("ps") }),
  z.strictObject({ op: z.literal("pause"), reason: z.string().min(1).max(500), until: z.int().positive().nullable() }),
  z.strictObject({ op: z.literal("resume") }),
  z.strictObject({ op: z.literal("stop"), id: z.string().min(1).max(300).nullable() }),
  z.strictObject({ op: z.literal("ready") }),
  z.strictObject({ op: z.literal("endpoints") }),
]);
export type ControlRequest = z.infer<typeof requestSchema>;
export type ControlAnswer = { value: unknown } | { error: ErrorBody };

const MAX_REQUEST_BYTES = 64 * 1024;

export class ControlServer {
  readonly #stateDir: string;
  readonly #operations: ControlOperations;
  readonly #server: Server;
  readonly #http: HttpServer;
  readonly #sockets = new Set<Socket>();

  /** `http`: answers requests of those who speak HTTP. Absent = they are told that there is nothing. */
  constructor(
    stateDir: string,
    operations: ControlOperations,
    http: RequestListener = (_request, response) => void response.writeHead(404).end(),
  ) {
    this.#stateDir = stateDir;
    this.#operations = operations;
    // The client ends its side with the request; the answer may take longer than that.
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#take(socket));
    // Never listens by itself: it is handed connections.
    this.#http = createHttpServer({ headersTimeout: 5_000, requestTimeout: 5_000, keepAliveTimeout: 5_000 }, http);
  }

  /** The caller holds the lock of the state directory, so a socket that is there is a dead one's. */
  async listen(): Promise<void> {
    rmSync(join(this.#stateDir, SOCKET), { force: true });
    const address = socketAddress(this.#stateDir);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.once("error", reject);
        this.#server.listen(address.path, resolve);
      });
      chmodSync(join(this.#stateDir, SOCKET), 0o600);
    } catch (cause) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `The control socket cannot be made in ${this.#stateDir} (${(cause as NodeJS.ErrnoException).code}).`,
        {
          fix: "Put the state directory on a file system that knows unix sockets.",
          cause,
        },
      );
    } finally {
      address.release();
    }
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
    rmSync(join(this.#stateDir, SOCKET), { force: true });
  }

  /** The first byte tells the two apart: a request of ours is an object, one of HTTP begins with its method. */
  #take(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => socket.destroy());
    socket.once("close", () => this.#sockets.delete(socket));
    const left = () => void socket.end();
    socket.once("end", left);
    socket.once("data", (first) => {
      // From here on whoever serves it says when it is over: a request may be all that its sender has to say.
      socket.off("end", left);
      socket.pause();
      socket.unshift(first);
      if (/^[A-Z]/.test(String.fromCharCode(first[0]!))) {
        this.#http.emit("connection", socket);
        socket.resume();
      } else void this.#serve(socket);
    });
  }

  async #serve(socket: Socket): Promise<void> {
    try {
      for await (const request of readNdjson(socket, MAX_REQUEST_BYTES)) {
        const answer = await this.#answer(request);
        if (!socket.destroyed) socket.write(ndjsonLine(answer));
      }
      socket.end();
    } catch {
      socket.destroy();
    }
  }

  async #answer(request: unknown): Promise<ControlAnswer> {
    try {
      const parsed = requestSchema.safeParse(request);
      if (!parsed.success)
        throw new ConnectorError(
          "INPUT_INVALID",
          `The request is not one that this agent knows: ${parsed.error.issues[0]?.message ?? ""}`,
        );
      return { value: await this.#perform(parsed.data) };
    } catch (error) {
      return { error: toConnectorError(error).toBody() };
    }
  }

  #perform(request: ControlRequest): Promise<unknown> {
    switch (request.op) {
      case "ps":
        return this.#operations.ps();
      case "pause":
        return this.#operations.pause({ reason: request.reason, until: request.until });
      case "resume":
        return this.#operations.resume();
      case "stop":
        return this.#operations.stop(request.id);
      case "ready":
        return this.#operations.ready();
      case "endpoints":
        return this.#operations.endpoints();
    }
  }
}
