// How two processes of one control plane prove to each other that they have its identity key. Pure state: bytes in,
// bytes out.
//
//   dialer                                acceptor
//   HELLO      nonce, ephemeral, who  -->
//                                     <--  CHALLENGE  nonce, ephemeral, who, certificate; signed by the identity key
//   PROOF      signed                 -->
//
// Each signature covers the exact bytes of everything before it, and the certificate that the acceptor shows on this
// port: whoever stands between the two would have to show another one. The keys of the frames' MACs come from X25519.
import {
  createHash,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  hkdfSync,
  randomBytes,
  type KeyObject,
} from "node:crypto";
import {
  ConnectorError,
  DOMAIN,
  FrameMac,
  FrameReader,
  FrameWriter,
  signatureSchema,
  signedSchema,
  verifySignature,
  type KeyRing,
  type Signer,
} from "@sallyport/protocol";
import { z } from "zod";

export interface PeerIdentity {
  /** This process. */
  readonly process: string;
  readonly incarnation: string;
  readonly signer: Signer;
  readonly ring: KeyRing;
}

export interface PeerAgreed {
  readonly peer: string;
  readonly writer: FrameWriter;
  readonly reader: FrameReader;
}

const raw32 = z.string().regex(/^[A-Za-z0-9_-]{43}$/);
const name = z.string().min(1).max(256);
const helloSchema = z.object({ peer: z.literal(1), process: name, incarnation: name, nonce: raw32, ephemeral: raw32 });
const challengeSchema = helloSchema.extend({
  /** Hex sha-256 of the certificate's DER; null on a port without TLS. */
  certificate: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .nullable(),
});
const proofSchema = z.object({ signature: signatureSchema });

const failed = (why: string, cause?: unknown): ConnectorError =>
  new ConnectorError("HANDSHAKE_FAILED", `The link between two processes of the control plane was refused: ${why}.`, {
    fix: "Give all processes the same folder of keys, and the same database.",
    cause,
  });

function parse<S extends z.ZodType>(schema: S, text: Buffer | string, what: string): z.output<S> {
  try {
    return schema.parse(JSON.parse(text.toString()));
  } catch (cause) {
    throw failed(`the ${what} is malformed`, cause);
  }
}

const makeEphemeral = () => {
  const pair = generateKeyPairSync("x25519");
  return { key: pair.privateKey, raw: (pair.publicKey.export({ format: "jwk" }) as { x: string }).x };
};

function keysOf(own: KeyObject, peerRaw: string, salt: Buffer): { dialer: Buffer; acceptor: Buffer } {
  try {
    const publicKey = createPublicKey({ key: { kty: "OKP", crv: "X25519", x: peerRaw }, format: "jwk" });
    const shared = diffieHellman({ privateKey: own, publicKey });
    const bytes = Buffer.from(hkdfSync("sha256", shared, salt, "sallyport/peer/1", 64));
    return { dialer: bytes.subarray(0, 32), acceptor: bytes.subarray(32) };
  } catch (cause) {
    throw failed("an ephemeral key is not usable", cause);
  }
}

const digestOf = (...parts: (Buffer | string)[]): Buffer => {
  const hash = createHash("sha256");
  // Each with its length: no two lists of parts are the same bytes.
  for (const part of parts) hash.update(`${Buffer.byteLength(part)}:`).update(part);
  return hash.digest();
};
const helloOf = (identity: PeerIdentity, ephemeral: string) => ({
  peer: 1 as const,
  process: identity.process,
  incarnation: identity.incarnation,
  nonce: randomBytes(32).toString("base64url"),
  ephemeral,
});
const NO_KEY = "the other process does not have this control plane's identity key";
const OTHER_DATABASE = "the other process has another database";

export class PeerDialer {
  readonly #identity: PeerIdentity;
  readonly #expects: string;
  readonly #certificate: string | null;
  readonly #ephemeral = makeEphemeral();
  readonly #hello: Buffer;

  /** `expects`: the process that it means to reach; `certificate`: that the connection showed, null without TLS. */
  constructor(identity: PeerIdentity, expects: string, certificate: string | null) {
    this.#identity = identity;
    this.#expects = expects;
    this.#certificate = certificate;
    this.#hello = Buffer.from(JSON.stringify(helloOf(identity, this.#ephemeral.raw)));
  }

  hello(): Buffer {
    return this.#hello;
  }

  onChallenge(message: Buffer): { send: Buffer; agreed: PeerAgreed } {
    const { text, signature } = parse(signedSchema, message, "challenge");
    const digest = digestOf(this.#hello, text);
    if (!verifySignature(this.#identity.ring, DOMAIN.peerAcceptor, digest, signature)) throw failed(NO_KEY);
    const said = parse(challengeSchema, text, "challenge");
    if (said.incarnation !== this.#identity.incarnation) throw failed(OTHER_DATABASE);
    if (said.process !== this.#expects) throw failed(`${said.process} answers where ${this.#expects} was expected`);
    if (said.certificate !== this.#certificate)
      throw failed("something stands between the two: the certificate is not the one that was shown");
    const keys = keysOf(this.#ephemeral.key, said.ephemeral, digest);
    const proof = this.#identity.signer.sign(DOMAIN.peerDialer, digest);
    return {
      send: Buffer.from(JSON.stringify({ signature: proof })),
      agreed: {
        peer: said.process,
        writer: new FrameWriter(new FrameMac(keys.dialer)),
        reader: new FrameReader(new FrameMac(keys.acceptor)),
      },
    };
  }
}

export class PeerAcceptor {
  readonly #identity: PeerIdentity;
  readonly #certificate: string | null;
  readonly #ephemeral = makeEphemeral();
  #digest: Buffer | null = null;
  #agreed: PeerAgreed | null = null;

  /** `certificate`: what this port shows, null without TLS. */
  constructor(identity: PeerIdentity, certificate: string | null) {
    this.#identity = identity;
    this.#certificate = certificate;
  }

  onHello(message: Buffer): Buffer {
    const hello = parse(helloSchema, message, "hello");
    if (hello.incarnation !== this.#identity.incarnation) throw failed(OTHER_DATABASE);
    const text = JSON.stringify({ ...helloOf(this.#identity, this.#ephemeral.raw), certificate: this.#certificate });
    const digest = (this.#digest = digestOf(message, text));
    const keys = keysOf(this.#ephemeral.key, hello.ephemeral, digest);
    this.#agreed = {
      peer: hello.process,
      writer: new FrameWriter(new FrameMac(keys.acceptor)),
      reader: new FrameReader(new FrameMac(keys.dialer)),
    };
    return Buffer.from(JSON.stringify({ text, signature: this.#identity.signer.sign(DOMAIN.peerAcceptor, digest) }));
  }

  onProof(message: Buffer): PeerAgreed {
    const { signature } = parse(proofSchema, message, "proof");
    if (
      this.#agreed === null ||
      this.#digest === null ||
      !verifySignature(this.#identity.ring, DOMAIN.peerDialer, this.#digest, signature)
    )
      throw failed(NO_KEY);
    return this.#agreed;
  }
}
