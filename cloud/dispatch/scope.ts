// Reads and writes that the dispatcher makes for itself, not for a person.
import type { WorkspaceId } from "@sallyport/protocol";
import type { Scope } from "../store/store.ts";

export const systemScope = (workspace: WorkspaceId): Scope => ({
  workspace,
  actor: { id: "system", name: "system", via: "system" },
});
