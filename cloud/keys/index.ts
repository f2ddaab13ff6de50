// The cloud's own keys: rings for identity and commands, and its certificate authority. Private halves stay in files;
// SQL gets public halves. Only main.ts imports this file.
export { loadKeyRing, type KeyPurpose, type LoadedRing } from "./key-ring.ts";
import type { ServerTls } from "./authority.ts";
export type { ServerTls } from "./authority.ts";
export { readPrivateFile, writePrivateFile } from "./private-file.ts";

/** See authority.ts. Loaded only when there is no certificate from elsewhere: its libraries are heavy. */
export const ownTls = async (folder: string, names: readonly string[], now: number): Promise<ServerTls> =>
  (await import("./authority.ts")).ownTls(folder, names, now);
export const passingCertificate = async (now: number): Promise<{ cert: string; key: string; digest: string }> =>
  (await import("./authority.ts")).passingCertificate(now);
export const makeSharedAuthority = async (folder: string, now: number): Promise<void> =>
  (await import("./authority.ts")).makeSharedAuthority(folder, now);
