// Walks to each address as the link does, with the same dial, then greets and stops at the control plane's CHALLENGE: it
// has then proved who it is and told its time, and nothing was said of this agent that could disturb a running one.
import { generateKeyPairSync } from "node:crypto";
import {
  AgentHandshake,
  ConnectorError,
  DEFAULT_MAX_STREAMS,
  DEFAULT_WINDOWS,
  newId,
  readChallenge,
  type Clock,
  type Transport,
} from "@sallyport/protocol";
import {
  dial,
  dialNatsLink,
  findPinnedCa,
  GREETING_MS,
  linkUrl,
  toLinkFailure,
  type DialTarget,
  type Hop,
  type HopDetails,
  type HopFacts,
  type LinkNetwork,
  type NatsRoute,
} from "../link/index.ts";
import { explain, type Explained } from "./explain.ts";
import type { Known } from "./known.ts";
import { nameOf } from "./look.ts";
import type { AddressReport, Diagnosis, HopReport } from "./report.ts";
import { SKEW_FAIL_MS, SKEW_NOTE_MS, skewSentence, span } from "./skew.ts";

export interface DoctorOptions {
  /** Base URLs, the main one first. */
  readonly addresses: readonly string[];
  readonly network: LinkNetwork;
  /** Over a NATS network, whose server is then the one address. Absent or null: not. */
  readonly nats?: NatsRoute | null;
  readonly known: Known;
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export async function diagnose(options: DoctorOptions): Promise<Diagnosis> {
  const addresses: AddressReport[] = [];
  for (const url of options.addresses) addresses.push(await walk(url, options));
  return { ok: addresses.every(({ ok }) => ok), addresses };
}

/** The NATS client is not looked into: its server is one hop, and whether a control plane answers behind it another. */
async function walkNats(route: NatsRoute, { known, clock, signal }: DoctorOptions): Promise<AddressReport> {
  const notes = new Notes(clock);
  try {
    const transport = await dialNatsLink(route, clock, signal);
    notes.add("upgrade", "ok", "The NATS server takes this agent's login, and a control plane listens.");
    try {
      await greet(transport, known, notes, clock);
    } finally {
      transport.destroy();
    }
  } catch (caught) {
    notes.failed(notes.hops.length === 0 ? "upgrade" : "handshake", toLinkFailure(caught).reason, null);
  }
  return { url: route.url, proxy: null, ok: notes.hops.every(({ state }) => state !== "failed"), hops: notes.hops };
}

async function walk(cloudUrl: string, options: DoctorOptions): Promise<AddressReport> {
  const { network, nats = null, known, clock, signal } = options;
  if (nats !== null) return walkNats(nats, options);
  const notes = new Notes(clock);
  let proxy: string | null = null;
  /** Closer looks go the same way, without being noted as hops. */
  let target: DialTarget | null = null;
  try {
    const between = await network.wayTo(cloudUrl, signal);
    proxy = between.proxy?.url.host ?? null;
    const passed = (hop: Hop, facts: HopFacts) => notes.passed(hop, facts);
    target = { ...between, cloudUrl, ca: known.ca, clock, signal };
    const { secure } = linkUrl(cloudUrl);
    if (known.ca === null && known.caFingerprint !== null && secure) {
      target = { ...target, ca: await findPinnedCa({ ...target, passed }, known.caFingerprint) };
      notes.restart();
    }
    const transport = await dial({ ...target, passed });
    try {
      await greet(transport, known, notes, clock);
    } finally {
      transport.destroy();
    }
  } catch (caught) {
    const failure = toLinkFailure(caught);
    const details = failure.reason.details as Partial<HopDetails> | undefined;
    const hop = details?.hop ?? (notes.hops.length === 0 ? "config" : "handshake");
    const found = target === null ? null : await explain(failure, hop, target, known, clock);
    notes.failed(hop, failure.reason, found);
  }
  return { url: cloudUrl, proxy, ok: notes.hops.every(({ state }) => state !== "failed"), hops: notes.hops };
}

class Notes {
  hops: HopReport[] = [];
  readonly #clock: Clock;
  #sinceMs: number;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#sinceMs = clock.monotonic();
  }

  #lap(): number {
    const now = this.#clock.monotonic();
    const ms = now - this.#sinceMs;
    this.#sinceMs = now;
    return ms;
  }
  restart(): void {
    this.hops = [];
    this.#lap();
  }
  passed(hop: Hop, facts: HopFacts): void {
    this.add(hop, "ok", sentence(hop, facts));
  }
  add(hop: Hop, state: "ok" | "warning", text: string, fix: string | null = null): void {
    this.hops.push({ hop, state, text, fix, code: null, finding: null, ms: this.#lap() });
  }
  failed(hop: Hop, reason: ConnectorError, found: Explained | null): void {
    const details = reason.details as Partial<HopDetails> | undefined;
    const blamed = found?.hop ?? hop;
    // Told late: TLS 1.3 lets a client without its certificate pass, and refuses it with the first bytes.
    const passed = this.hops.findIndex((one) => one.hop === blamed);
    if (passed !== -1) this.hops.splice(passed);
    this.hops.push({
      hop: blamed,
      state: "failed",
      text: found?.text ?? reason.message,
      fix: found?.fix ?? reason.fix ?? null,
      code: reason.code,
      finding: found?.finding ?? details?.finding ?? null,
      ms: this.#lap(),
    });
  }
}

function sentence(hop: Hop, facts: HopFacts): string {
  switch (hop) {
    case "dns":
      return facts.addresses!.join(", ");
    case "tcp":
      return `${facts.remote} answers.`;
    case "proxy":
      return "The proxy opened the way.";
    case "tls": {
      const certificate = facts.socket!.getPeerCertificate();
      return `${facts.socket!.getProtocol()}; certificate of ${nameOf(certificate.subject)}, signed by ${nameOf(certificate.issuer)}, until ${certificate.valid_to}.`;
    }
    case "upgrade":
      return "The WebSocket is open.";
    default:
      return "";
  }
}

/** HELLO with a key of no worth; CHALLENGE is judged; PROOF, which would open a session, is never sent. */
async function greet(transport: Transport, known: Known, notes: Notes, clock: Clock): Promise<void> {
  const pins: string[] = [...(known.pins ?? [])];
  const handshake = new AgentHandshake({
    key: generateKeyPairSync("ed25519").privateKey,
    who: { type: "replica", replica: newId("replica", clock.now()) },
    pins,
    windows: DEFAULT_WINDOWS,
    maxStreams: DEFAULT_MAX_STREAMS,
    mac: true,
    peerOnLoopback: false,
    proof: () => ({
      version: "doctor",
      instance: "doctor",
      startCounter: 0,
      journal: newId("journal", clock.now()),
      lastSession: null,
      dispatchSequence: {},
      generations: {},
    }),
  });
  const sentMs = clock.monotonic();
  const message = await firstMessage(transport, handshake.hello(), clock);
  const rttMs = clock.monotonic() - sentMs;
  const { challenge, fingerprint } = readChallenge(message);
  if (known.pins === null) pins.push(fingerprint);
  handshake.receive(message);
  const protocol = `protocol ${challenge.protocol}`;
  notes.add(
    "handshake",
    "ok",
    known.pins === null
      ? `A control plane answers (${protocol}, identity key ${fingerprint.slice(0, 12)}…). This agent has not joined one yet, so there is nothing to compare the key with.`
      : `It proved the identity key of ${known.pinsFrom} (${protocol}). Whether it lets this agent in, only the agent itself asks.`,
  );
  judgeClock(challenge.timeMs - (clock.now() - rttMs / 2), notes);
}

function judgeClock(aheadMs: number, notes: Notes): void {
  const off = Math.abs(aheadMs);
  const words = `${skewSentence(aheadMs, "the control plane's")}.`;
  const fix = "Let a time service set the clock of this machine (or of the control plane's, whichever is wrong).";
  if (off <= SKEW_NOTE_MS) notes.add("clock", "ok", `Within ${span(off)} of the control plane's.`);
  else if (off <= SKEW_FAIL_MS) notes.add("clock", "warning", words, fix);
  else
    notes.failed("clock", new ConnectorError("HANDSHAKE_FAILED", words, { fix }), {
      hop: "clock",
      finding: "clock-off",
      text: words,
      fix,
    });
}

function firstMessage(transport: Transport, hello: Buffer, clock: Clock): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const fail = (message: string, cause: unknown) =>
      reject(
        new ConnectorError("HANDSHAKE_FAILED", message, {
          fix: "Look at the control plane's log: it says why. A gateway may also pass the WebSocket's opening and not what follows.",
          cause,
        }),
      );
    const timer = clock.after(
      GREETING_MS,
      () => fail(`The WebSocket opened, but no greeting came within ${GREETING_MS / 1000} s.`, undefined),
      { keepAlive: true },
    );
    transport.onClose((cause) => {
      timer.cancel();
      fail("The WebSocket opened, and was closed before the greeting.", cause);
    });
    transport.onMessage((message) => {
      timer.cancel();
      resolve(message);
    });
    transport.send(hello);
  });
}
