// What the doctor found, as plain data and as lines for people.
import type { ErrorCode } from "@sallyport/protocol";
import type { Finding, Hop } from "../link/index.ts";

/** What only a closer look can tell, beside what a dial finds by itself. */
export type DoctorFinding =
  | Finding
  | "captive-page"
  | "plain-http"
  | "identity-key"
  | "refused-handshake"
  | "clock-off";

export interface HopReport {
  readonly hop: Hop;
  readonly state: "ok" | "warning" | "failed";
  readonly text: string;
  /** Null: there is nothing to do. */
  readonly fix: string | null;
  /** Of docs/errors.md; null unless it failed. */
  readonly code: ErrorCode | null;
  readonly finding: DoctorFinding | null;
  /** Since the hop before. */
  readonly ms: number;
}

export interface AddressReport {
  readonly url: string;
  /** host:port; null = straight. */
  readonly proxy: string | null;
  readonly ok: boolean;
  /** In the order in which they are passed, up to the first that failed. */
  readonly hops: readonly HopReport[];
}

export interface Diagnosis {
  /** Every address was walked to its end. */
  readonly ok: boolean;
  readonly addresses: readonly AddressReport[];
}

const MARKS = { ok: "ok  ", warning: "note", failed: "FAIL" } as const;

export function renderDiagnosis({ ok, addresses }: Diagnosis): string {
  const lines = addresses.flatMap(({ url, proxy, hops }) => [
    `${url}${proxy === null ? "" : ` through the proxy ${proxy}`}`,
    ...hops.flatMap(({ hop, state, text, fix, ms }) => [
      `  ${MARKS[state]}  ${hop.padEnd(9)}  ${text} (${Math.round(ms)} ms)`,
      ...(fix === null ? [] : [`                   -> ${fix}`]),
    ]),
  ]);
  const verdict = ok
    ? "The way to the control plane is open."
    : `The way is not open: see ${addresses
        .filter((address) => !address.ok)
        .map((address) => `${address.hops.at(-1)?.hop ?? "config"} of ${address.url}`)
        .join(", ")}.`;
  return `${[...lines, verdict].join("\n")}\n`;
}
