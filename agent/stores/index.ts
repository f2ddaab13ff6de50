// Stores: where artifacts lie, each reached with its own credentials. They know no policy (the features ask it) and no
// link. Features and main.ts may import this door.
import { ConnectorError, type Clock } from "@sallyport/protocol";
import type { StoreConfig } from "../config/index.ts";
import type { Secrets } from "../secrets/index.ts";
import type { ArtifactStore, Stores } from "./store.ts";

export { parseArtifactPath, joinPath, baseName } from "./path.ts";
export { imageTypeOf, extensionOf, mediaTypeOf, UNKNOWN_TYPE } from "./media-types.ts";
export { digestOf, filesBelow, manifestOf, MAX_TREE_FILES } from "./manifest.ts";
export type { ArtifactStore, MakeManifest, OpenedRead, ReadRange, Stores, WriteOptions } from "./store.ts";

export interface OpenStores extends Stores {
  /** Lets go of every connection. */
  close(): Promise<void>;
}

/** Nothing is opened, and no connector's library imported, before a store is first asked for. */
export function openStores(configs: readonly StoreConfig[], secrets: Secrets, clock: Clock): OpenStores {
  const byId = new Map(configs.map((c) => [c.id, c]));
  const opened = new Map<string, Promise<ArtifactStore & { close?(): Promise<void> }>>();

  const open = async (config: StoreConfig): Promise<ArtifactStore & { close?(): Promise<void> }> => {
    switch (config.kind) {
      case "fs":
        return new (await import("./fs.ts")).FsStore(config.id, config.root);
      case "s3":
        return new (await import("./s3.ts")).S3Store(config, secrets, clock);
    }
  };

  return {
    ids: [...byId.keys()],
    async get(id) {
      const config = byId.get(id);
      if (config === undefined) {
        const ids = [...byId.keys()];
        throw new ConnectorError(
          "STORE_UNKNOWN",
          `The agent has no store ${JSON.stringify(id)}; ${ids.length === 0 ? "none is configured" : `it has ${ids.join(", ")}`}.`,
          {
            fix: "Name one of these, or add the store to the agent's configuration.",
          },
        );
      }
      let store = opened.get(id);
      if (store === undefined) {
        store = open(config);
        opened.set(id, store);
      }
      return await store;
    },
    async close() {
      for (const store of opened.values()) await (await store).close?.();
      opened.clear();
    },
  };
}
