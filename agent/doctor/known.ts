/** What this agent knows of its control plane before it dials. */
export interface Known {
  /** PEM; null = the machine's own list. */
  readonly ca: string | null;
  /** For people: where `ca` comes from. */
  readonly caFrom: string;
  /** Of an enrolment secret, where no CA is known yet. */
  readonly caFingerprint: string | null;
  /** Fingerprints of identity keys that are the control plane's; null = none is known yet. */
  readonly pins: readonly string[] | null;
  readonly pinsFrom: string;
}
