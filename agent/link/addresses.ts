// Several addresses of one control plane: tried in turn, beginning with the one that worked last, one connection at a time.
import { ConnectorError } from "@sallyport/protocol";
import { LinkFailure, toLinkFailure } from "./link-failure.ts";

export class Addresses {
  readonly #more: readonly string[];
  /** The one to begin with; null = the first. */
  #first: string | null = null;

  constructor(more: readonly string[]) {
    this.#more = more;
  }

  /** It led to a session: the next dial begins with it. */
  keep(address: string): void {
    this.#first = address;
  }

  /** It let us in and no further: the next dial begins with the one after it. */
  passOver(address: string): void {
    const all = this.#all;
    if (all.length > 1) this.#first = all[(all.indexOf(address) + 1) % all.length] ?? null;
  }

  #all: readonly string[] = [];

  /** `main`: the configured or enrolled one. Rejects with a LinkFailure that speaks for all of them. */
  async tryEach<T>(main: string, connect: (address: string) => Promise<T>, signal: AbortSignal): Promise<T> {
    const all = [...new Set([main, ...this.#more])];
    this.#all = all;
    const from = Math.max(0, all.indexOf(this.#first ?? main));
    const failures: LinkFailure[] = [];
    for (const address of [...all.slice(from), ...all.slice(0, from)]) {
      try {
        return await connect(address);
      } catch (error) {
        failures.push(toLinkFailure(error));
        if (signal.aborted) break;
      }
    }
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
