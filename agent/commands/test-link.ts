// For tests of this folder: a real link without its handshake (two multiplexers over a loopback WebSocket), and the
// cloud's part of a command: intent, dispatch and signatures.
import { generateKeyPairSync } from "node:crypto";
import { once } from "node:events";
import type { AddressInfo, Socket } from "node:net";
import {
  ConnectorError,
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  DOMAIN,
  FrameReader,
  FrameWriter,
  jsonBody,
  keySigner,
  Mux,
  newCommandId,
  newId,
  sha256,
  systemClock,
  webSocketTransport,
  type Body,
  type CommandOpen,
  type Dispatch,
  type Intent,
  type LinkStream,
} from "@sallyport/protocol";
import { WebSocket, WebSocketServer } from "ws";
import type { AgentSession } from "../link/link.ts";

const keys = generateKeyPairSync("ed25519");
export const commandKey = keys.publicKey;
export const signer = keySigner("command-1", keys.privateKey);
export const workspace = newId("workspace");
export const pool = newId("pool");
export const replica = newId("replica");

export interface TestLink {
  session: AgentSession;
  cloud: Mux;
  /** Cuts the connection without a word. */
  cut(): void;
  close(): Promise<void>;
}

export interface TestLinkOptions {
  onAgentStream?: (stream: LinkStream, session: AgentSession) => void;
  onCloudStream?: (stream: LinkStream) => void;
}

let epoch = 0;

export async function testLink(options: TestLinkOptions): Promise<TestLink> {
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
  await once(server, "listening");
  const client = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`, {
    perMessageDeflate: false,
  });
  const [[accepted, request]] = (await Promise.all([once(server, "connection"), once(client, "open")])) as [
    [WebSocket, { socket: Socket }],
    unknown,
  ];
  const mux = (side: "agent" | "cloud", webSocket: WebSocket, socket: Socket, onStream: (stream: LinkStream) => void) =>
    new Mux({
      id: newId("session"),
      transport: webSocketTransport(webSocket, socket),
      clock: systemClock,
      side,
      writer: new FrameWriter(null),
      reader: new FrameReader(null),
      windows: DEFAULT_WINDOWS,
      peerWindows: DEFAULT_WINDOWS,
      maxStreams: DEFAULT_MAX_STREAMS,
      peerMaxStreams: DEFAULT_MAX_STREAMS,
      checksums: true,
      onStream,
    });
  const agentSocket = (client as unknown as { _socket: Socket })._socket;
  const agent = mux("agent", client, agentSocket, (stream) => options.onAgentStream?.(stream, session));
  const cloud = mux("cloud", accepted, request.socket, (stream) => options.onCloudStream?.(stream));
  const session: AgentSession = {
    id: newId("session"),
    epoch: ++epoch,
    incarnation: "inc-1",
    workspace,
    pool,
    replica,
    commandKeys: new Map([["command-1", keys.publicKey]]),
    cloudNow: () => Date.now(),
    figures: () => agent.figures(),
    open: (head, how) => agent.open(head, how),
    rttMs: null,
    closed: agent.closed,
  };
  return {
    session,
    cloud,
    cut: () => agentSocket.destroy(),
    close: async () => {
      const over = new ConnectorError("GOING_AWAY", "The test is over.");
      agent.close(over);
      cloud.close(over);
      await Promise.all([agent.closed, cloud.closed]);
      server.close();
      await once(server, "close");
    },
  };
}

let sequence = 0;

export interface OfferChanges {
  intent?: Partial<Intent> & Record<string, unknown>;
  dispatch?: Partial<Dispatch> & Record<string, unknown>;
  body?: Body;
}

/** The head of a command's stream, signed after the changes were made. */
export function offer(
  session: Pick<AgentSession, "id" | "epoch" | "incarnation">,
  kind: string,
  input: unknown,
  changes: OfferChanges = {},
): CommandOpen {
  const body = changes.body ?? jsonBody(input);
  const now = Date.now();
  const intent = JSON.stringify({
    workspace,
    pool,
    kind,
    resource: "test:1",
    command: newCommandId(),
    notBefore: now - 1000,
    expires: now + 60_000,
    bodyDigest: sha256(body.data),
    ...changes.intent,
  });
  const dispatch = JSON.stringify({
    intentDigest: sha256(intent),
    replica,
    session: session.id,
    epoch: session.epoch,
    incarnation: session.incarnation,
    sequence: ++sequence,
    attempt: 1,
    expires: now + 60_000,
    ...changes.dispatch,
  });
  return {
    type: "command",
    intent: { text: intent, signature: null },
    dispatch: { text: dispatch, signature: signer.sign(DOMAIN.dispatch, Buffer.from(dispatch)) },
    body,
  };
}

export const commandOf = (open: CommandOpen): Intent => JSON.parse(open.intent.text) as Intent;
