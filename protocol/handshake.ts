// The handshake, from both ends, as pure state: bytes in, bytes out; no socket, no timer, no store.
//
//   agent                                   cloud
//   HELLO      nonce, ephemeral, who   -->
//                                      <--  CHALLENGE  nonce, ephemeral, command keys, signed by the identity key
//   checks the PINNED identity key
//   PROOF      what it holds, signed   -->
//                                           asks the directory: is it known, or may it enrol?
//                                      <--  READY      session, epoch, names     (or REFUSE at any point)
//
// Both signatures cover the exact bytes of everything before them. The session keys come from X25519 over both
// ephemerals, salted with HELLO and CHALLENGE; PROOF and everything after it carries a MAC.
import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  randomBytes,
  sign as edSign,
  verify as edVerify,
  type KeyObject,
} from "node:crypto";
import { z } from "zod";
import type { BulkKeys } from "./checksum.ts";
import { FrameMac, FrameReader, FrameWriter, parseControl } from "./codec.ts";
import { DOMAIN, keyFingerprint, signatureSchema, type KeyRing, type Signer } from "./envelope.ts";
import { ConnectorError } from "./errors.ts";
import {
  FRAME,
  FRAME_NAMES,
  MAX_HELLO_BYTES,
  MAX_PROOF_BYTES,
  failureJson,
  failureSchema,
  type Failure,
  type Frame,
  type FrameType,
} from "./frames.ts";
import {
  enrollmentIdSchema,
  journalIdSchema,
  poolIdSchema,
  replicaIdSchema,
  sessionIdSchema,
  workspaceIdSchema,
  type SessionId,
} from "./ids.ts";
import type { StreamWindows } from "./mux.ts";
import { PROTOCOL_MIN, PROTOCOL_VERSION } from "./version.ts";

const raw32 = z.string().regex(/^[A-Za-z0-9_-]{43}$/, "32 bytes in base64url");
const count = z.int().nonnegative();
const short = z.string().max(256);
const windowsSchema = z.object({ interactive: count.min(16 * 1024), bulk: count.min(16 * 1024) });
const capabilitiesSchema = z.array(z.string().max(64)).max(64);

/** Optional parts of the protocol that this build can do. Both must name one for it to be used. */
export const CAPABILITIES = ["crc32", "gmac", "trace"] as const;

// Unknown fields are ignored in all of these: a newer peer may say more.

export const helloSchema = z.object({
  protocol: z.object({ min: count, max: count }),
  nonce: raw32,
  ephemeral: raw32,
  /** Known replica, or one that asks to enrol. Nothing else is said before the cloud has proved itself. */
  who: z.discriminatedUnion("type", [
    z.object({ type: z.literal("replica"), replica: replicaIdSchema }),
    z.object({ type: z.literal("enrol"), enrollment: enrollmentIdSchema, publicKey: raw32 }),
  ]),
  capabilities: capabilitiesSchema,
  windows: windowsSchema,
  maxStreams: count,
  /** Asks for a MAC on every frame of the session. Refused without one unless the peer is on loopback. */
  mac: z.boolean(),
});
export type Hello = z.infer<typeof helloSchema>;

export const challengeSchema = z.object({
  /** Chosen: the highest that both speak. */
  protocol: count,
  nonce: raw32,
  ephemeral: raw32,
  identity: z.object({ kid: short, publicKey: raw32 }),
  session: sessionIdSchema,
  /** Changes when the cloud's database is restored from a backup. */
  incarnation: z.string().min(1).max(64),
  /** Cloud's wall clock, ms since the epoch: expiries are judged by it. */
  timeMs: count,
  /** kid -> raw public key; whoever holds one of these may sign dispatches. */
  commandKeys: z.record(short, raw32),
  capabilities: capabilitiesSchema,
  windows: windowsSchema,
  maxStreams: count,
  mac: z.boolean(),
});
export type Challenge = z.infer<typeof challengeSchema>;

export const proofSchema = z.object({
  version: short,
  /** Per start of the agent process. */
  instance: short,
  startCounter: count,
  journal: journalIdSchema,
  lastSession: sessionIdSchema.nullable(),
  /** incarnation -> highest dispatch sequence held. */
  dispatchSequence: z.record(short, count),
  /** deployment -> highest generation held. */
  generations: z.record(short, count),
  /** The secret, sealed under the session key so that nobody between sees it; null for a known replica. */
  enrolment: z.object({ sealed: z.string().max(1024), nameHint: z.string().max(63).nullable() }).nullable(),
});
export type Proof = z.infer<typeof proofSchema>;

export const readySchema = z.object({
  session: sessionIdSchema,
  epoch: count,
  replica: replicaIdSchema,
  workspace: workspaceIdSchema,
  pool: poolIdSchema,
  /** For people: logs and status pages. */
  names: z.object({ replica: short, pool: short, workspace: short }),
});
export type Ready = z.infer<typeof readySchema>;

/** Text and its signature, as CHALLENGE and PROOF carry them. */
const signedTextSchema = z.object({ text: z.string(), signature: signatureSchema });

/** What both ends know once the handshake is done: all that the multiplexer needs. */
export interface Agreed {
  readonly protocol: number;
  readonly writer: FrameWriter;
  readonly reader: FrameReader;
  readonly peerWindows: StreamWindows;
  readonly peerMaxStreams: number;
  readonly checksums: boolean;
  /** Null: the peer cannot. */
  readonly bulkKeys: BulkKeys | null;
  /** The agent takes `trace` in the head of a command. Absent = no. */
  readonly traces?: boolean;
}

export interface HelloLimits {
  readonly windows: StreamWindows;
  readonly maxStreams: number;
  /** False only where the peer is on loopback. */
  readonly mac: boolean;
}

// Keys

const SPKI_ED25519 = Buffer.from("302a300506032b6570032100", "hex");
const SPKI_X25519 = Buffer.from("302a300506032b656e032100", "hex");

/** The raw 32 bytes of an Ed25519 or X25519 public key, base64url. */
export function rawPublicKey(key: KeyObject): string {
  return (key.export({ format: "jwk" }) as { x: string }).x;
}
export function ed25519PublicKey(raw: string): KeyObject {
  return createPublicKey({
    key: Buffer.concat([SPKI_ED25519, Buffer.from(raw, "base64url")]),
    format: "der",
    type: "spki",
  });
}
const x25519PublicKey = (raw: string): KeyObject =>
  createPublicKey({ key: Buffer.concat([SPKI_X25519, Buffer.from(raw, "base64url")]), format: "der", type: "spki" });

/** sha-256 over the parts, each with its length before it, so that no two sequences of parts look alike. */
function transcript(...parts: Uint8Array[]): Buffer {
  const hash = createHash("sha256");
  const length = Buffer.alloc(4);
  for (const part of parts) {
    length.writeUInt32BE(part.length);
    hash.update(length).update(part);
  }
  return hash.digest();
}

interface SessionKeys {
  readonly agentMac: Buffer;
  readonly cloudMac: Buffer;
  readonly seal: Buffer;
  readonly agentBulk: Buffer;
  readonly cloudBulk: Buffer;
}

function deriveKeys(own: KeyObject, peerRaw: string, salt: Buffer): SessionKeys {
  let shared: Buffer;
  try {
    shared = diffieHellman({ privateKey: own, publicKey: x25519PublicKey(peerRaw) });
  } catch (cause) {
    throw new ConnectorError("HANDSHAKE_FAILED", "The peer's ephemeral key is not usable.", { cause });
  }
  const bytes = Buffer.from(hkdfSync("sha256", shared, salt, "sallyport/link/1", 160));
  const part = (n: number): Buffer => bytes.subarray(n * 32, (n + 1) * 32);
  return { agentMac: part(0), cloudMac: part(1), seal: part(2), agentBulk: part(3), cloudBulk: part(4) };
}

/** A character for each byte, until a bulk stream asks: as buffers they take half a KiB of each idle link. */
class KeptBulkKeys implements BulkKeys {
  readonly #send: string;
  readonly #receive: string;
  constructor(send: Buffer, receive: Buffer) {
    this.#send = send.toString("latin1");
    this.#receive = receive.toString("latin1");
  }
  get send(): Buffer {
    return Buffer.from(this.#send, "latin1");
  }
  get receive(): Buffer {
    return Buffer.from(this.#receive, "latin1");
  }
}

function seal(key: Buffer, context: Buffer, secret: Uint8Array): string {
  const iv = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, iv).setAAD(context);
  return Buffer.concat([iv, cipher.update(secret), cipher.final(), cipher.getAuthTag()]).toString("base64url");
}

function unseal(key: Buffer, context: Buffer, sealed: string): Buffer {
  const bytes = Buffer.from(sealed, "base64url");
  try {
    const decipher = createDecipheriv("aes-256-gcm", key, bytes.subarray(0, 12), { authTagLength: 16 }).setAAD(context);
    decipher.setAuthTag(bytes.subarray(-16));
    return Buffer.concat([decipher.update(bytes.subarray(12, -16)), decipher.final()]);
  } catch (cause) {
    throw new ConnectorError("HANDSHAKE_FAILED", "The sealed enrolment secret cannot be opened.", { cause });
  }
}

const agentSignable = (digest: Buffer): Buffer => Buffer.concat([Buffer.from(`${DOMAIN.helloAgent}\0`), digest]);

function expect(frame: Frame, type: FrameType): void {
  if (frame.type === FRAME.refuse) {
    const failure = parseControl(frame, failureSchema);
    throw new HandshakeRefused(failure, (frame.flags & 0x80) !== 0);
  }
  if (frame.type !== type)
    throw new ConnectorError(
      "HANDSHAKE_FAILED",
      `A ${FRAME_NAMES[type]} was expected and a ${FRAME_NAMES[frame.type]} came.`,
    );
}

/** The cloud said no. `proven`: the words carry a MAC, so they are the cloud's own and not those of somebody between. */
export class HandshakeRefused extends Error {
  readonly reason: ConnectorError;
  readonly retryAfterMs: number | null;
  readonly proven: boolean;
  constructor(failure: Failure, proven: boolean) {
    super(failure.message);
    this.name = "HandshakeRefused";
    this.reason = ConnectorError.fromBody(failure);
    this.retryAfterMs = failure.retryAfterMs ?? null;
    this.proven = proven;
  }
}

function chooseProtocol(range: { min: number; max: number }): number {
  const chosen = Math.min(range.max, PROTOCOL_VERSION);
  if (chosen < Math.max(range.min, PROTOCOL_MIN)) {
    throw new ConnectorError(
      "PROTOCOL_VERSION",
      `The agent speaks protocol ${range.min} to ${range.max}, the control plane ${PROTOCOL_MIN} to ${PROTOCOL_VERSION}.`,
      { fix: range.max < PROTOCOL_MIN ? "Update the agent." : "Update the control plane." },
    );
  }
  return chosen;
}

const tooWeak = (): ConnectorError =>
  new ConnectorError("HANDSHAKE_FAILED", "Frames without a MAC are possible on loopback only.", {
    fix: "Switch the link's MAC on at both ends.",
  });

/** What a CHALLENGE claims, unverified: for a diagnosis, which says what it saw. Throws as `AgentHandshake.receive`. */
export function readChallenge(message: Buffer): { challenge: Challenge; fingerprint: string } {
  const frame = new FrameReader(null).read(message);
  if (frame === null) throw new ConnectorError("HANDSHAKE_FAILED", "The handshake has no detached payloads.");
  expect(frame, FRAME.challenge);
  const { text } = parseControl(frame, signedTextSchema);
  const challenge = parseControl({ ...frame, payload: Buffer.from(text) }, challengeSchema);
  return { challenge, fingerprint: keyFingerprint(ed25519PublicKey(challenge.identity.publicKey)) };
}

// The agent's end

export interface AgentHello extends HelloLimits {
  /** The replica's key, also when it only asks to become one. */
  readonly key: KeyObject;
  readonly who:
    | { readonly type: "replica"; readonly replica: string }
    | {
        readonly type: "enrol";
        readonly enrollment: string;
        readonly secret: Uint8Array;
        readonly nameHint: string | null;
      };
  /** Fingerprints of the identity keys that are the cloud's. */
  readonly pins: readonly string[];
  /** Sent once the cloud has proved itself. */
  readonly proof: () => Omit<Proof, "enrolment">;
  readonly peerOnLoopback: boolean;
}

export interface AgentGreeted extends Agreed {
  readonly ready: Ready;
  readonly challenge: Challenge;
  /** The command keys that the identity key vouched for. */
  readonly commandKeys: KeyRing;
}

export class AgentHandshake {
  readonly #options: AgentHello;
  readonly #ephemeral = generateKeyPairSync("x25519");
  readonly #hello: Buffer;
  #reader = new FrameReader(null);
  #challenge: Challenge | null = null;
  #bulkKeys: BulkKeys | null = null;
  #writer: FrameWriter | null = null;
  #macAgreed = true;

  constructor(options: AgentHello) {
    this.#options = options;
    const { who } = options;
    const hello: Hello = {
      protocol: { min: PROTOCOL_MIN, max: PROTOCOL_VERSION },
      nonce: randomBytes(32).toString("base64url"),
      ephemeral: rawPublicKey(this.#ephemeral.publicKey),
      who:
        who.type === "replica"
          ? { type: "replica", replica: who.replica as Extract<Hello["who"], { type: "replica" }>["replica"] }
          : {
              type: "enrol",
              enrollment: who.enrollment as Extract<Hello["who"], { type: "enrol" }>["enrollment"],
              publicKey: rawPublicKey(createPublicKey(options.key)),
            },
      capabilities: [...CAPABILITIES],
      windows: options.windows,
      maxStreams: options.maxStreams,
      mac: options.mac,
    };
    this.#hello = Buffer.from(JSON.stringify(hello));
  }

  /** The first message. */
  hello(): Buffer {
    return new FrameWriter(null).control(FRAME.hello, 0, 0, this.#hello.toString());
  }

  /** Takes the cloud's next message. Gives a message to send, or the end of the handshake; throws ConnectorError, HandshakeRefused. */
  receive(message: Buffer): { send: Buffer } | { greeted: AgentGreeted } {
    const frame = this.#reader.read(message);
    if (frame === null) throw new ConnectorError("HANDSHAKE_FAILED", "The handshake has no detached payloads.");
    return this.#challenge === null
      ? { send: this.#onChallenge(frame) }
      : { greeted: this.#onReady(frame, this.#challenge) };
  }

  #onChallenge(frame: Frame): Buffer {
    expect(frame, FRAME.challenge);
    const { text, signature } = parseControl(frame, signedTextSchema);
    const untrusted = (why: string) =>
      new ConnectorError(
        "CLOUD_UNTRUSTED",
        `The control plane did not prove that it is the one this agent belongs to: ${why}.`,
        {
          fix: "Check the address of the control plane and that nothing between answers in its place; if its identity key was replaced, enrol the agent again.",
        },
      );
    // The claim is read to find the key; only a key that is pinned counts.
    const challenge = parseControl({ ...frame, payload: Buffer.from(text) }, challengeSchema);
    const identity = ed25519PublicKey(challenge.identity.publicKey);
    if (!this.#options.pins.includes(keyFingerprint(identity)))
      throw untrusted("its identity key is not the pinned one");
    const digest = transcript(this.#hello, Buffer.from(text));
    const signed = Buffer.concat([Buffer.from(`${DOMAIN.helloCloud}\0`), digest]);
    if (
      signature.kid !== challenge.identity.kid ||
      !edVerify(null, signed, identity, Buffer.from(signature.sig, "base64url"))
    ) {
      throw untrusted("the signature does not match what was said");
    }
    if (challenge.protocol < PROTOCOL_MIN || challenge.protocol > PROTOCOL_VERSION) {
      throw new ConnectorError(
        "PROTOCOL_VERSION",
        `The control plane chose protocol ${challenge.protocol}; this agent speaks ${PROTOCOL_MIN} to ${PROTOCOL_VERSION}.`,
        {
          fix: "Update the agent.",
        },
      );
    }
    this.#macAgreed = this.#options.mac || challenge.mac;
    if (!this.#macAgreed && !this.#options.peerOnLoopback) throw tooWeak();

    const keys = deriveKeys(this.#ephemeral.privateKey, challenge.ephemeral, digest);
    this.#writer = new FrameWriter(new FrameMac(keys.agentMac));
    // READY and a later REFUSE carry a MAC; an earlier kind of REFUSE cannot come any more.
    this.#reader = new FrameReader(new FrameMac(keys.cloudMac));
    this.#challenge = challenge;
    if (challenge.capabilities.includes("gmac")) this.#bulkKeys = new KeptBulkKeys(keys.agentBulk, keys.cloudBulk);

    const { who } = this.#options;
    const proof: Proof = {
      ...this.#options.proof(),
      enrolment:
        who.type === "replica" ? null : { sealed: seal(keys.seal, digest, who.secret), nameHint: who.nameHint },
    };
    const proofText = JSON.stringify(proof);
    const payload = JSON.stringify({
      text: proofText,
      signature: {
        kid: keyFingerprint(createPublicKey(this.#options.key)),
        alg: "ed25519",
        sig: edSign(
          null,
          agentSignable(transcript(this.#hello, frame.payload, Buffer.from(proofText))),
          this.#options.key,
        ).toString("base64url"),
      },
    });
    return this.#writer.control(FRAME.proof, 0, 0, payload);
  }

  #onReady(frame: Frame, challenge: Challenge): AgentGreeted {
    expect(frame, FRAME.ready);
    const ready = parseControl(frame, readySchema);
    if (ready.session !== challenge.session)
      throw new ConnectorError("HANDSHAKE_FAILED", "READY names another session than CHALLENGE.");
    return {
      protocol: challenge.protocol,
      writer: this.#macAgreed ? this.#writer! : new FrameWriter(null),
      reader: this.#macAgreed ? this.#reader : new FrameReader(null),
      peerWindows: challenge.windows,
      peerMaxStreams: challenge.maxStreams,
      checksums: challenge.capabilities.includes("crc32"),
      bulkKeys: this.#bulkKeys,
      ready,
      challenge,
      commandKeys: new Map(Object.entries(challenge.commandKeys).map(([kid, raw]) => [kid, ed25519PublicKey(raw)])),
    };
  }
}

// The cloud's end

export interface CloudHello extends HelloLimits {
  /** The identity key. */
  readonly identity: Signer;
  readonly identityPublicKey: KeyObject;
  readonly session: SessionId;
  readonly incarnation: string;
  readonly nowMs: number;
  /** kid -> public key of the command key ring. */
  readonly commandKeys: KeyRing;
  readonly peerOnLoopback: boolean;
}

/** A verified PROOF: `publicKey` is the key that must be (or become) the replica's; nothing was looked up yet. */
export interface AgentClaim {
  readonly hello: Hello;
  readonly proof: Proof;
  /** In the clear, for the directory; null for a known replica. */
  readonly enrolmentSecret: Buffer | null;
}

export class CloudHandshake {
  readonly #options: CloudHello;
  readonly #ephemeral = generateKeyPairSync("x25519");
  #reader = new FrameReader(null);
  #writer = new FrameWriter(null);
  #helloBytes: Buffer | null = null;
  #hello: Hello | null = null;
  #challengePayload: Buffer | null = null;
  #digest: Buffer | null = null;
  #keys: SessionKeys | null = null;
  #macAgreed = true;
  #proof: { frame: Frame; proofText: string; proof: Proof; signature: Buffer } | null = null;

  constructor(options: CloudHello) {
    this.#options = options;
  }

  get session(): SessionId {
    return this.#options.session;
  }

  /** Takes HELLO, gives CHALLENGE. */
  onHello(message: Buffer): Buffer {
    const frame = this.#read(message, FRAME.hello);
    const hello = parseControl(frame, helloSchema);
    const protocol = chooseProtocol(hello.protocol);
    this.#macAgreed = this.#options.mac || hello.mac;
    if (!this.#macAgreed && !this.#options.peerOnLoopback) throw tooWeak();
    const challenge: Challenge = {
      protocol,
      nonce: randomBytes(32).toString("base64url"),
      ephemeral: rawPublicKey(this.#ephemeral.publicKey),
      identity: { kid: this.#options.identity.kid, publicKey: rawPublicKey(this.#options.identityPublicKey) },
      session: this.#options.session,
      incarnation: this.#options.incarnation,
      timeMs: this.#options.nowMs,
      commandKeys: Object.fromEntries([...this.#options.commandKeys].map(([kid, key]) => [kid, rawPublicKey(key)])),
      capabilities: [...CAPABILITIES],
      windows: this.#options.windows,
      maxStreams: this.#options.maxStreams,
      mac: this.#options.mac,
    };
    const text = JSON.stringify(challenge);
    this.#hello = hello;
    this.#helloBytes = frame.payload;
    this.#digest = transcript(frame.payload, Buffer.from(text));
    this.#keys = deriveKeys(this.#ephemeral.privateKey, hello.ephemeral, this.#digest);
    const payload = JSON.stringify({ text, signature: this.#options.identity.sign(DOMAIN.helloCloud, this.#digest) });
    this.#challengePayload = Buffer.from(payload);
    const answer = this.#writer.control(FRAME.challenge, 0, 0, payload);
    this.#writer = new FrameWriter(new FrameMac(this.#keys.cloudMac));
    this.#reader = new FrameReader(new FrameMac(this.#keys.agentMac));
    return answer;
  }

  /** Takes PROOF. What it claims is not to be believed before `confirm`, which needs the replica's key. */
  onProof(message: Buffer): AgentClaim {
    const frame = this.#read(message, FRAME.proof);
    const { text, signature } = parseControl(frame, signedTextSchema);
    const proof = parseControl({ ...frame, payload: Buffer.from(text) }, proofSchema);
    this.#proof = { frame, proofText: text, proof, signature: Buffer.from(signature.sig, "base64url") };
    const hello = this.#hello!;
    if ((hello.who.type === "enrol") !== (proof.enrolment !== null))
      throw new ConnectorError("HANDSHAKE_FAILED", "PROOF does not fit HELLO.");
    return {
      hello,
      proof,
      enrolmentSecret:
        proof.enrolment === null ? null : unseal(this.#keys!.seal, this.#digest!, proof.enrolment.sealed),
    };
  }

  /** Did the holder of this key (raw, base64url) sign the PROOF? */
  provesKey(publicKey: string): boolean {
    const { proofText, signature } = this.#proof!;
    const digest = transcript(this.#helloBytes!, this.#challengePayload!, Buffer.from(proofText));
    return edVerify(null, agentSignable(digest), ed25519PublicKey(publicKey), signature);
  }

  /** The last message, and what the multiplexer needs. */
  ready(ready: Ready): { send: Buffer; agreed: Agreed } {
    const hello = this.#hello!;
    const send = this.#writer.control(FRAME.ready, 0, 0, JSON.stringify(ready));
    return {
      send,
      agreed: {
        protocol: chooseProtocol(hello.protocol),
        writer: this.#macAgreed ? this.#writer : new FrameWriter(null),
        reader: this.#macAgreed ? this.#reader : new FrameReader(null),
        peerWindows: hello.windows,
        peerMaxStreams: hello.maxStreams,
        checksums: hello.capabilities.includes("crc32"),
        bulkKeys: hello.capabilities.includes("gmac")
          ? new KeptBulkKeys(this.#keys!.cloudBulk, this.#keys!.agentBulk)
          : null,
        traces: hello.capabilities.includes("trace"),
      },
    };
  }

  refuse(error: ConnectorError, retryAfterMs?: number): Buffer {
    return this.#writer.control(
      FRAME.refuse,
      0,
      0,
      failureJson({ ...error.toBody(), ...(retryAfterMs === undefined ? {} : { retryAfterMs }) }, FRAME.refuse),
    );
  }

  #read(message: Buffer, type: FrameType): Frame {
    if (message.length > MAX_PROOF_BYTES + MAX_HELLO_BYTES)
      throw new ConnectorError("FRAME_TOO_LARGE", "A message of the handshake is too large.");
    const frame = this.#reader.read(message);
    if (frame === null || frame.type !== type)
      throw new ConnectorError("HANDSHAKE_FAILED", `A ${FRAME_NAMES[type]} was expected.`);
    return frame;
  }
}

/** An Ed25519 private key from its PKCS#8 PEM. */
export const ed25519PrivateKey = (pem: string): KeyObject => createPrivateKey(pem);
