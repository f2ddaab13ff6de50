// From the bytes that the cloud offers to a command that may be thought about: signature, addressee, replay, digests,
// times. Nothing is parsed before its signature or digest was verified, and nothing here looks inside the body.
import {
  bodyBytes,
  commandOpenSchema,
  ConnectorError,
  dispatchSchema,
  DOMAIN,
  intentSchema,
  MAX_BODY_BYTES,
  MAX_DISPATCH_LIFETIME_MS,
  MAX_INTENT_LIFETIME_MS,
  parseTraceparent,
  sha256,
  verifySignature,
  type Body,
  type Dispatch,
  type Domain,
  type Intent,
  type KeyRing,
  type Signature,
  type TraceContext,
} from "@sallyport/protocol";
import type { z } from "zod";
import type { AgentSession } from "../link/link.ts";

/** What the cloud's and the client's clocks may differ by before a time counts as wrong. */
const SKEW_MS = 60_000;

export interface Offer {
  intent: Intent;
  intentText: string;
  dispatch: Dispatch;
  body: Body;
  /** Who vouches for it, as the audit names them. */
  who: string;
  /** Of the request that it comes from; null = not said. */
  trace: TraceContext | null;
}

/** Each issue of a schema as {path, expected}: what was wrong where, without the value. */
export function issuesOf(error: z.ZodError): { path: string; problem: string }[] {
  return error.issues
    .slice(0, 20)
    .map((issue) => ({ path: issue.path.map(String).join(".") || "(root)", problem: issue.message }));
}

export function invalidInput(what: string, error: z.ZodError): ConnectorError {
  const issues = issuesOf(error);
  return new ConnectorError(
    "INPUT_INVALID",
    `${what} is not as expected: ${issues.map((issue) => `${issue.path}: ${issue.problem}`).join("; ")}`.slice(0, 2000),
    {
      fix: "Correct the named fields.",
      details: { issues },
    },
  );
}

const refuse = (message: string, details?: Record<string, unknown>) =>
  new ConnectorError("DISPATCH_INVALID", message, {
    fix: "The control plane offers the command anew.",
    ...(details === undefined ? {} : { details }),
  });

function verify(ring: KeyRing, domain: Domain, text: string, signature: Signature, what: string): void {
  // One signature has one spelling: what was not sent by the signer's hand is refused, even if it decodes to the same.
  const canonical = Buffer.from(signature.sig, "base64url").toString("base64url") === signature.sig;
  if (!canonical || !verifySignature(ring, domain, Buffer.from(text), signature)) {
    throw new ConnectorError(
      "SIGNATURE_INVALID",
      `The signature of the ${what} by key ${JSON.stringify(signature.kid)} does not match its bytes, or the key is not one of those vouched for.`,
      {
        details: { kid: signature.kid },
      },
    );
  }
}

function parse<T extends z.ZodType>(schema: T, text: string, what: string): z.output<T> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ConnectorError("INPUT_INVALID", `The ${what} is not JSON.`, { cause });
  }
  const parsed = schema.safeParse(value);
  if (!parsed.success) throw invalidInput(`The ${what}`, parsed.error);
  return parsed.data;
}

/**
 * Dispatch numbers that were seen, per incarnation of the cloud. They rise, but streams on different lanes may overtake
 * each other, so a number is refused when it was seen or lies further below the highest than any overtaking explains.
 */
export class DispatchWindow {
  static readonly WIDTH = 4096;
  readonly #highest: Map<string, number>;
  readonly #seen = new Map<string, Set<number>>();
  readonly #floor: ReadonlyMap<string, number>;

  /** `held`: highest numbers of earlier starts; all up to them count as seen. */
  constructor(held: Readonly<Record<string, number>>) {
    this.#highest = new Map(Object.entries(held));
    this.#floor = new Map(Object.entries(held));
  }

  get highest(): Record<string, number> {
    return Object.fromEntries(this.#highest);
  }

  /** Takes the number; false when it must not be taken. */
  take(incarnation: string, sequence: number): boolean {
    const highest = this.#highest.get(incarnation) ?? 0;
    if (sequence <= (this.#floor.get(incarnation) ?? 0) || sequence <= highest - DispatchWindow.WIDTH) return false;
    let seen = this.#seen.get(incarnation);
    if (seen === undefined) this.#seen.set(incarnation, (seen = new Set()));
    if (seen.has(sequence)) return false;
    seen.add(sequence);
    if (sequence > highest) this.#highest.set(incarnation, sequence);
    if (seen.size > 2 * DispatchWindow.WIDTH) {
      const low = Math.max(sequence, highest) - DispatchWindow.WIDTH;
      for (const old of seen) if (old <= low) seen.delete(old);
    }
    return true;
  }
}

/** Verifies what came in OPEN. `authorKeys`: whose signatures under an intent are known; an unknown one is refused. */
export function readOffer(head: unknown, session: AgentSession, window: DispatchWindow, authorKeys: KeyRing): Offer {
  const open = commandOpenSchema.safeParse(head);
  if (!open.success) {
    throw new ConnectorError(
      "PROTOCOL_ERROR",
      `The head of a command's stream is not as expected: ${issuesOf(open.error)
        .map((issue) => `${issue.path}: ${issue.problem}`)
        .join("; ")}`.slice(0, 2000),
      {
        details: { issues: issuesOf(open.error) },
      },
    );
  }
  const { intent: signedIntent, dispatch: signedDispatch, body } = open.data;

  verify(session.commandKeys, DOMAIN.dispatch, signedDispatch.text, signedDispatch.signature, "dispatch");
  const dispatch = parse(dispatchSchema, signedDispatch.text, "dispatch");
  const now = session.cloudNow();
  if (dispatch.replica !== session.replica)
    throw refuse(`The dispatch is for replica ${dispatch.replica}; this is ${session.replica}.`);
  if (dispatch.session !== session.id)
    throw refuse(`The dispatch is for session ${dispatch.session}; this is ${session.id}.`);
  if (dispatch.epoch !== session.epoch)
    throw refuse(`The dispatch is for epoch ${dispatch.epoch}; this session has ${session.epoch}.`);
  if (dispatch.incarnation !== session.incarnation)
    throw refuse("The dispatch is of another incarnation of the control plane than this session.");
  if (dispatch.expires <= now)
    throw refuse("The dispatch was past its expiry when it arrived.", {
      expires: dispatch.expires,
      cloudNow: Math.round(now),
    });
  if (dispatch.expires > now + MAX_DISPATCH_LIFETIME_MS + SKEW_MS)
    throw refuse(`The dispatch lives longer than ${MAX_DISPATCH_LIFETIME_MS / 60_000} minutes.`);

  if (sha256(signedIntent.text) !== dispatch.intentDigest)
    throw refuse("The dispatch was made for another intent than the one beside it.");
  if (signedIntent.signature !== null)
    verify(authorKeys, DOMAIN.intent, signedIntent.text, signedIntent.signature, "intent");
  const intent = parse(intentSchema, signedIntent.text, "intent");
  if (intent.workspace !== session.workspace)
    throw refuse(`The intent is of workspace ${intent.workspace}; this agent belongs to ${session.workspace}.`);
  if (intent.pool !== session.pool)
    throw refuse(`The intent is for pool ${intent.pool}; this agent is in ${session.pool}.`);
  const bytes = bodyBytes(body);
  if (bytes.length > MAX_BODY_BYTES)
    throw new ConnectorError("TOO_LARGE", `The command's body is longer than ${MAX_BODY_BYTES} bytes.`);
  if (sha256(bytes) !== intent.bodyDigest) throw refuse("The body is not the one that the intent was made for.");
  if (body.enc === "none" && body.kid !== null) throw refuse("The body names a key though it is not encrypted.");

  // Last, so that a mutilated copy cannot use up the number of the real one.
  if (!window.take(dispatch.incarnation, dispatch.sequence))
    throw refuse(`The dispatch number ${dispatch.sequence} was taken before: this is a repetition.`, {
      sequence: dispatch.sequence,
    });
  const kid = signedIntent.signature?.kid;
  return {
    intent,
    intentText: signedIntent.text,
    dispatch,
    body,
    trace: parseTraceparent(open.data.trace),
    who: kid === undefined ? `cloud:${signedDispatch.signature.kid}` : `author:${kid}`,
  };
}

/** Judged once, at acceptance, against the cloud's time; later only durations count. */
export function requireInTime(intent: Intent, cloudNow: number): void {
  if (intent.expires - intent.notBefore > MAX_INTENT_LIFETIME_MS) {
    throw new ConnectorError(
      "INPUT_INVALID",
      `The intent lives longer than ${MAX_INTENT_LIFETIME_MS / 86_400_000} days.`,
      {
        fix: "Ask again with an earlier expiry.",
        details: { issues: [{ path: "expires", problem: `at most ${MAX_INTENT_LIFETIME_MS} ms after notBefore` }] },
      },
    );
  }
  if (intent.expires <= cloudNow) {
    throw new ConnectorError(
      "COMMAND_EXPIRED",
      `The command expired at ${new Date(intent.expires).toISOString()}, before it reached the agent.`,
      {
        fix: "Ask again, with a later expiry if the agent may be away for long.",
        details: { expires: intent.expires },
      },
    );
  }
  if (intent.notBefore > cloudNow + SKEW_MS) {
    throw refuse(`The command is not to begin before ${new Date(intent.notBefore).toISOString()}.`, {
      notBefore: intent.notBefore,
    });
  }
}
