// Where the other processes' links end: a port of its own, never the public one. Who has proved the identity key may open
// streams to the agents that are connected here.
import { createServer, type IncomingMessage, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import {
  ConnectorError,
  DEFAULT_WINDOWS,
  Mux,
  toConnectorError,
  webSocketTransport,
  type Clock,
  type LinkStream,
  type SocketLike,
  type Transport,
} from "@sallyport/protocol";
import { WebSocketServer } from "ws";
import type { CloudSession } from "../link/sessions.ts";
import { PeerAcceptor, type PeerIdentity } from "./handshake.ts";
import { askSchema, type Ask } from "./messages.ts";
import { greeter, PEER_STREAMS, SOCKET_OPTIONS } from "./peer-socket.ts";
import { relay } from "./relay.ts";

export interface PeerServerOptions {
  readonly identity: PeerIdentity;
  readonly clock: Clock;
  /** Absent: plain, on loopback only. `digest`: of the certificate. */
  readonly tls?: { readonly cert: string; readonly key: string; readonly digest: string };
  /** The session of a replica that is connected here. */
  held(replica: CloudSession["replica"]): CloudSession | null;
  ping(session: CloudSession): Promise<number>;
  /** Ends a session, or (null) whatever there is of the replica. */
  close(replica: CloudSession["replica"], session: CloudSession | null, reason: ConnectorError): void;
  /** The head that goes to the agent, from what the other process sent. */
  headFor(session: CloudSession, head: unknown): unknown;
  readonly refused: (error: ConnectorError, from: string) => void;
}

/** Sockets that have not proved who they are. */
const MOST_GREETING = 64;

export class PeerServer {
  readonly #options: PeerServerOptions;
  readonly #server: Server;
  readonly #muxes = new Set<Mux>();
  #greeting = 0;
  #closed = false;

  constructor(options: PeerServerOptions) {
    this.#options = options;
    this.#server =
      options.tls === undefined
        ? createServer()
        : createTlsServer({ cert: options.tls.cert, key: options.tls.key, minVersion: "TLSv1.3" });
    const sockets = new WebSocketServer({ noServer: true, clientTracking: false, ...SOCKET_OPTIONS });
    this.#server.on("request", (_request, response) => response.writeHead(404).end());
    this.#server.on("upgrade", (request: IncomingMessage, socket: Duplex & Partial<SocketLike>, head: Buffer) => {
      socket.on("error", () => socket.destroy());
      if (
        request.url !== "/peer" ||
        this.#closed ||
        this.#greeting >= MOST_GREETING ||
        request.headers.origin !== undefined
      )
        return void socket.end("HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
      this.#greeting++;
      (socket as { setNoDelay?: (on: boolean) => void }).setNoDelay?.(true);
      sockets.handleUpgrade(request, socket, head, (webSocket) => {
        void this.#take(
          webSocketTransport(webSocket, socket as unknown as SocketLike),
          options.tls?.digest ?? null,
          () => {},
        ).finally(() => this.#greeting--);
      });
    });
  }

  /** Whether somebody who comes another way than by the port may begin to greet now. */
  mayGreet(): boolean {
    return !this.#closed && this.#greeting < MOST_GREETING;
  }

  /** Greets whoever comes another way than by the port. `onAuthenticated`: it has the key; until then the caller bounds it. */
  accept(transport: Transport, _from: string, { onAuthenticated }: { onAuthenticated: () => void }): void {
    this.#greeting++;
    void this.#take(transport, null, onAuthenticated).finally(() => this.#greeting--);
  }

  /** Answers the port. */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", (cause: NodeJS.ErrnoException) =>
        reject(
          new ConnectorError(
            "CONFIG_INVALID",
            `The address for other processes ${host}:${port} cannot be used (${cause.code}).`,
            {
              fix: "Free it, or name another one by --peer-listen.",
              cause,
            },
          ),
        ),
      );
      this.#server.listen(port, host, resolve);
    });
    return (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    this.#closed = true;
    const reason = new ConnectorError("GOING_AWAY", "The process is stopping.");
    const muxes = [...this.#muxes];
    for (const mux of muxes) mux.close(reason);
    const over = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await Promise.all(muxes.map((mux) => mux.closed));
    await over;
  }

  /** `certificate`: what was shown to it; null where this process showed none. */
  async #take(transport: Transport, certificate: string | null, onAuthenticated: () => void): Promise<void> {
    try {
      await this.#greet(transport, certificate, onAuthenticated);
    } catch (caught) {
      transport.destroy();
      this.#options.refused(toConnectorError(caught), transport.remoteAddress);
    }
  }

  async #greet(transport: Transport, certificate: string | null, onAuthenticated: () => void): Promise<void> {
    const { identity, clock } = this.#options;
    const handshake = new PeerAcceptor(identity, certificate);
    const greeting = greeter(transport, clock);
    try {
      transport.send(handshake.onHello(await greeting.next()));
      const agreed = handshake.onProof(await greeting.next());
      onAuthenticated();
      const mux = new Mux({
        id: agreed.peer,
        transport,
        clock,
        side: "cloud",
        writer: agreed.writer,
        reader: agreed.reader,
        windows: DEFAULT_WINDOWS,
        peerWindows: DEFAULT_WINDOWS,
        maxStreams: PEER_STREAMS,
        peerMaxStreams: PEER_STREAMS,
        checksums: true,
        onStream: (stream) => this.#asked(stream),
      });
      this.#muxes.add(mux);
      void mux.closed.then(() => this.#muxes.delete(mux));
      if (this.#closed) mux.close(new ConnectorError("GOING_AWAY", "The process is stopping."));
    } finally {
      greeting.done();
    }
  }

  #asked(stream: LinkStream): void {
    const parsed = askSchema.safeParse(stream.head);
    if (!parsed.success)
      return stream.reset(
        new ConnectorError("KIND_UNKNOWN", "This process of the control plane does not know what it is asked.", {
          fix: "Run the same version everywhere.",
        }),
      );
    const ask: Ask = parsed.data;
    const held = this.#options.held(ask.replica);
    const session = held !== null && (ask.session === undefined || held.id === ask.session) ? held : null;
    if (ask.type === "close") {
      const { code, message, fix } = ask.reason;
      if (session !== null || ask.session === undefined)
        this.#options.close(
          ask.replica,
          session,
          ConnectorError.fromBody({
            code: code as ConnectorError["code"],
            message,
            ...(fix === undefined ? {} : { fix }),
          }),
        );
      return stream.respond({}, { end: true });
    }
    if (session === null)
      return stream.reset(
        notSent(new ConnectorError("LINK_LOST", "The agent is not connected to that process any more.")),
      );
    if (ask.type === "ping") {
      this.#options.ping(session).then(
        (rttMs) => stream.respond({ rttMs }, { end: true }),
        (error: unknown) => stream.reset(toConnectorError(error)),
      );
      return;
    }
    let opened: LinkStream;
    try {
      opened = session.open(this.#options.headFor(session, ask.head), { lane: ask.lane, end: ask.end });
    } catch (caught) {
      return stream.reset(notSent(toConnectorError(caught)));
    }
    relay(stream, opened, ask.end);
  }
}

/** The agent has heard nothing of it: whoever asked may ask again elsewhere. */
const notSent = (error: ConnectorError): ConnectorError =>
  new ConnectorError(error.code, error.message, {
    ...(error.fix === undefined ? {} : { fix: error.fix }),
    details: { ...error.details, notSent: true },
  });
