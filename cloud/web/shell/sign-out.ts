import { api } from "../api/client.ts";

/** Ends the session and shows the sign-in page, also when the control plane is away. */
export async function signOut(): Promise<void> {
  await api.delete("/v1/session").catch(() => undefined);
  location.assign("/signin");
}
