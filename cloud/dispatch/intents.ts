// Texts of the two signed layers: the intent (what is wanted, kept with the row) and the dispatch (made anew at each
// offer, signed by the cloud's command key). Also the numbers that dispatches carry.
import {
  ConnectorError,
  DOMAIN,
  MAX_BODY_BYTES,
  MAX_DISPATCH_LIFETIME_MS,
  MAX_INTENT_LIFETIME_MS,
  MAX_SIGNED_BYTES,
  bodyBytes,
  bodySchema,
  formatTraceparent,
  intentSchema,
  newCommandId,
  parseTraceparent,
  sha256,
  type Body,
  type CommandId,
  type CommandOpen,
  type Dispatch,
  type Intent,
  type PoolId,
  type Signer,
  type TraceContext,
  type WorkspaceId,
} from "@sallyport/protocol";
import { z } from "zod";
import type { CloudSession } from "../link/sessions.ts";

export interface Wish {
  workspace: WorkspaceId;
  pool: PoolId;
  kind: string;
  resource: string;
  /** Chosen by the client; absent = made here. */
  command?: CommandId | undefined;
  body: Body;
  /** ms since the epoch; absent = at once. */
  notBefore?: number | undefined;
  /** ms since the epoch. */
  expires: number;
}

/** How far the agent's notion of our time may lie behind it. */
const CLOCK_SLACK_MS = 60_000;

/** The intent and the exact text that is kept, offered and digested. */
export function writeIntent(wish: Wish, nowMs: number): { intent: Intent; text: string } {
  const bytes = bodyBytes(wish.body);
  if (bytes.length > MAX_BODY_BYTES) {
    throw new ConnectorError(
      "TOO_LARGE",
      `The input of ${wish.kind} is ${bytes.length} bytes, the limit is ${MAX_BODY_BYTES}.`,
      {
        fix: "Pass large content as an artifact and name it in the input.",
        details: { bytes: bytes.length, limit: MAX_BODY_BYTES },
      },
    );
  }
  // Not the very time: the agent's notion of ours is behind by the link's delay. Who offers it keeps to the time itself.
  const notBefore = (wish.notBefore ?? nowMs) - CLOCK_SLACK_MS;
  const intent: Intent = {
    workspace: wish.workspace,
    pool: wish.pool,
    kind: wish.kind,
    resource: wish.resource,
    command: wish.command ?? newCommandId(nowMs),
    notBefore,
    expires: Math.min(wish.expires, nowMs - CLOCK_SLACK_MS + MAX_INTENT_LIFETIME_MS),
    bodyDigest: sha256(bytes),
  };
  return { intent, text: JSON.stringify(intent) };
}

export interface Offer {
  intentText: string;
  body: Body;
  session: CloudSession;
  incarnation: string;
  sequence: number;
  attempt: number;
  /** ms since the epoch; cut to what a dispatch may live. */
  expires: number;
  /** Another replica had accepted it, or may have. */
  takenOver?: boolean;
  /** Of the span that offers it; null or absent = nobody's request. */
  trace?: TraceContext | null;
}

/** What OPEN carries for this offer. */
export function signOffer(signer: Signer, offer: Offer, nowMs: number): CommandOpen {
  const dispatch: Dispatch = {
    intentDigest: sha256(offer.intentText),
    replica: offer.session.replica,
    session: offer.session.id,
    epoch: offer.session.epoch,
    incarnation: offer.incarnation,
    sequence: offer.sequence,
    attempt: offer.attempt,
    expires: Math.min(offer.expires, nowMs + MAX_DISPATCH_LIFETIME_MS),
    ...(offer.takenOver === true ? { takenOver: true } : {}),
  };
  const text = JSON.stringify(dispatch);
  return {
    type: "command",
    intent: { text: offer.intentText, signature: null },
    dispatch: { text, signature: signer.sign(DOMAIN.dispatch, Buffer.from(text)) },
    body: offer.body,
    ...(offer.trace === null || offer.trace === undefined || offer.session.takesTrace !== true
      ? {}
      : { trace: formatTraceparent(offer.trace) }),
  };
}

/** What one process sends another for a session that is held there: that one numbers and signs it. */
const unsignedSchema = z.strictObject({
  type: z.literal("command"),
  intentText: z.string().max(MAX_SIGNED_BYTES),
  body: bodySchema,
  expires: z.int().nonnegative(),
  trace: z.string().optional(),
});
export const unsignedOffer = (
  offer: Pick<Offer, "intentText" | "body" | "expires" | "trace">,
): z.infer<typeof unsignedSchema> => ({
  type: "command",
  intentText: offer.intentText,
  body: offer.body,
  expires: offer.expires,
  ...(offer.trace === null || offer.trace === undefined ? {} : { trace: formatTraceparent(offer.trace) }),
});

/** Throws PROTOCOL_ERROR for a head that is none, and DISPATCH_INVALID for a wish that is not for this session's pool. */
export function completeOffer(
  signer: Signer,
  sequences: Sequences,
  session: CloudSession,
  head: unknown,
  incarnation: string,
  nowMs: number,
): CommandOpen {
  const offer = unsignedSchema.safeParse(head);
  if (!offer.success)
    throw new ConnectorError("PROTOCOL_ERROR", "Another process sent a command in a form that is not known here.", {
      fix: "Run the same version everywhere.",
    });
  const intent = intentSchema.safeParse(safeJson(offer.data.intentText));
  if (!intent.success || intent.data.workspace !== session.workspace || intent.data.pool !== session.pool)
    throw new ConnectorError("DISPATCH_INVALID", "Another process sent a command that is not for the agent it names.");
  const { intentText, body, expires } = offer.data;
  const trace = parseTraceparent(offer.data.trace);
  return signOffer(
    signer,
    { intentText, body, session, incarnation, sequence: sequences.next(session), attempt: 1, expires, trace },
    nowMs,
  );
}

function safeJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return null;
  }
}

/** Dispatches that one session can number before it would reach into the next one's range. */
const PER_EPOCH = 2 ** 28;

/**
 * Dispatch sequences. They rise with each dispatch to a replica, over all its sessions in one incarnation, without a
 * disk write per read: an epoch comes from SQL and rises with each session, so it is the high part; the low part is
 * counted here. 2^25 sessions of one replica fit below 2^53. Take a number right before `open`, with no await between,
 * so that order of numbers is order of opening.
 */
export class Sequences {
  readonly #last = new WeakMap<CloudSession, number>();

  last(session: CloudSession): number {
    // The agent's own figure wins when it is higher: it never takes a number at or below what it has journaled.
    return this.#last.get(session) ?? Math.max(session.dispatchSequence, session.epoch * PER_EPOCH);
  }

  /** `floor`: what the store has recorded for the replica, for durable offers. */
  next(session: CloudSession, floor = 0): number {
    const sequence = Math.max(this.last(session) + 1, floor);
    this.#last.set(session, sequence);
    return sequence;
  }
}
