// Several addresses of one control plane: tried in turn, beginning with the one that worked last, one connection at a time.
// A round ends with a session, or when each was tried once; between rounds the link waits by its backoff.
import { ConnectorError, type ErrorCode } from "@sallyport/protocol";
import { LinkFailure, toLinkFailure } from "./link-failure.ts";

/** What a control plane says of this agent: it would say the same at its other addresses. */
const ABOUT_US: ReadonlySet<ErrorCode> = new Set([
  "IDENTITY_UNKNOWN",
  "IDENTITY_REVOKED",
  "IDENTITY_CLONED",
  "SESSION_SUPERSEDED",
  "ENROLMENT_UNKNOWN",
  "ENROLMENT_USED",
  "ENROLMENT_EXPIRED",
  "ENROLMENT_REVOKED",
  "ENROLMENT_MALFORMED",
]);

export class Addresses {
  readonly #more: readonly string[];
  #all: readonly string[] = [];
  /** The one to begin with; null = the main one. */
  #first: string | null = null;
  /** Of this round. */
  readonly #tried = new Set<string>();

  constructor(more: readonly string[]) {
    this.#more = more;
  }

  /** It led to a session: the next round begins with it. */
  keep(address: string): void {
    this.#first = address;
    this.#tried.clear();
  }

  /** It could be dialled, and then failed. True: another one is to be dialled at once; false: the round is over. */
  passOver(address: string, code: ErrorCode): boolean {
    this.#tried.add(address);
    const next = this.#all[(this.#all.indexOf(address) + 1) % this.#all.length] ?? null;
    if (ABOUT_US.has(code) || this.#all.every((one) => this.#tried.has(one))) {
      this.#tried.clear();
      if (!ABOUT_US.has(code)) this.#first = next;
      return false;
    }
    this.#first = next;
    return true;
  }

  /** `main`: the configured or enrolled one. Rejects with a LinkFailure that speaks for all that were tried. */
  async tryEach<T>(main: string, connect: (address: string) => Promise<T>, signal: AbortSignal): Promise<T> {
    const all = [...new Set([main, ...this.#more])];
    this.#all = all;
    const from = Math.max(0, all.indexOf(this.#first ?? main));
    const failures: LinkFailure[] = [];
    for (const address of [...all.slice(from), ...all.slice(0, from)]) {
      if (this.#tried.has(address)) continue;
      try {
        return await connect(address);
      } catch (error) {
        failures.push(toLinkFailure(error));
        this.#tried.add(address);
        if (signal.aborted) break;
      }
    }
    this.#tried.clear();
    throw together(failures);
  }
}

/** The most hopeful one decides how soon it is tried again; its words stand first. */
function together(failures: readonly LinkFailure[]): LinkFailure {
  const best = failures.find(({ reason }) => reason.retry !== "never") ?? failures[0]!;
  if (failures.length < 2) return best;
  const { reason } = best;
  const others = failures.filter((failure) => failure !== best).map((failure) => failure.reason.message);
  return new LinkFailure(
    new ConnectorError(reason.code, [reason.message, "The other addresses:", ...others].join(" "), {
      ...(reason.fix === undefined ? {} : { fix: reason.fix }),
      ...(reason.details === undefined ? {} : { details: reason.details }),
      cause: reason,
    }),
    best.retryAfterMs,
  );
}
