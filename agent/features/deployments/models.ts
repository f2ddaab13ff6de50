// The cache of models, `<state>/models/sha256-…`: a model is fetched from its store once, kept when its bytes are those
// that its digest says, and collected when no deployment needs it and the room is wanted.
import { createHash } from "node:crypto";
import { chmod, mkdir, open, readdir, rename, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { ConnectorError, type DeploymentSpec } from "@sallyport/protocol";
import type { PolicyGuard } from "../../policy/action.ts";
import type { Stores } from "../../stores/store.ts";

type Model = DeploymentSpec["model"];

export interface ModelsOptions {
  stateDir: string;
  stores: Stores;
  policy: PolicyGuard;
  capBytes: () => number;
  /** Digests that a deployment needs: never collected. */
  needed: () => ReadonlySet<string>;
}

export class Models {
  readonly #options: ModelsOptions;
  readonly #folder: string;
  readonly #fetching = new Map<string, Promise<string>>();
  /** Of fetches under way. */
  #promisedBytes = 0;

  constructor(options: ModelsOptions) {
    this.#options = options;
    this.#folder = join(options.stateDir, "models");
  }

  /** The file, present and verified. The policy is asked also when it is here already. */
  async ensure(model: Model, signal: AbortSignal): Promise<string> {
    this.#options.policy.require({ kind: "store", access: "read", store: model.store, path: model.path });
    for (;;) {
      const under = this.#fetching.get(model.digest);
      if (under === undefined) break;
      // Another's fetch may be given up by another's signal: then it is our turn.
      const found = await under.catch(() => null);
      signal.throwIfAborted();
      if (found !== null) return found;
    }
    const work = this.#present(model, signal).finally(() => this.#fetching.delete(model.digest));
    this.#fetching.set(model.digest, work);
    return work;
  }

  async #present(model: Model, signal: AbortSignal): Promise<string> {
    const path = this.#path(model.digest);
    const there = await stat(path).catch(() => null);
    if (there?.isFile() !== true) await this.#fetch(model, path, signal);
    const now = new Date();
    await utimes(path, now, now).catch(() => undefined);
    return path;
  }

  async #fetch(model: Model, path: string, signal: AbortSignal): Promise<void> {
    const { stores, policy } = this.#options;
    const store = await stores.get(model.store);
    const source = await store.read(model.path, {
      signal,
      reached: (realPath) => policy.require({ kind: "store", access: "read", store: model.store, path: realPath }),
    });
    const part = `${path}.part`;
    const hash = createHash("sha256");
    let promised = 0;
    const iterator = source.bytes[Symbol.asyncIterator]();
    try {
      await mkdir(this.#folder, { recursive: true, mode: 0o700 });
      await this.#makeRoom(model, source.totalBytes);
      promised = source.totalBytes;
      this.#promisedBytes += promised;
      await rm(part, { force: true });
      const file = await open(part, "wx", 0o600);
      try {
        for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) {
          signal.throwIfAborted();
          hash.update(next.value);
          for (let at = 0; at < next.value.length;) at += (await file.write(next.value, at)).bytesWritten;
        }
        await file.sync();
      } finally {
        await file.close();
      }
      const found = `sha256:${hash.digest("hex")}`;
      if (found !== model.digest) {
        throw new ConnectorError(
          "DIGEST_MISMATCH",
          `The model ${model.path} in store ${model.store} is not the one that the deployment names.`,
          {
            fix: "Somebody changed the file: apply the deployment with the digest that is meant, or put the file back.",
            details: { store: model.store, path: model.path, expected: model.digest, found },
          },
        );
      }
      await chmod(part, 0o444);
      await rename(part, path);
      const folder = await open(this.#folder, "r");
      await folder.sync().finally(() => folder.close());
    } finally {
      this.#promisedBytes -= promised;
      await iterator.return?.().catch(() => undefined);
      await rm(part, { force: true });
    }
  }

  /** Removes what no deployment needs, the longest unused first, until `bytes` more fit under the cap. */
  async #makeRoom(model: Model, bytes: number): Promise<void> {
    const cap = this.#options.capBytes();
    const used = await this.collect(cap - bytes - this.#promisedBytes);
    if (used + this.#promisedBytes + bytes <= cap) return;
    throw new ConnectorError(
      "TOO_LARGE",
      `The model ${model.path} of ${bytes} bytes does not fit beside those in use: the agent keeps models of at most ${cap} bytes.`,
      { fix: "Whoever runs the agent can raise limits.modelBytes.", details: { limit: cap, used, model: bytes } },
    );
  }

  /** Brings the cache under so many bytes as far as what is needed allows; answers what is left. */
  async collect(underBytes: number = this.#options.capBytes()): Promise<number> {
    const needed = this.#options.needed();
    const files = [];
    for (const name of await readdir(this.#folder).catch(() => [])) {
      const info = await stat(join(this.#folder, name)).catch(() => null);
      if (info?.isFile() !== true) continue;
      const digest = /^sha256-([0-9a-f]{64})$/.exec(name)?.[1];
      // What a killed agent did not finish.
      if (digest === undefined) {
        const owner = /^sha256-([0-9a-f]{64})\.part$/.exec(name)?.[1];
        if (owner === undefined || !this.#fetching.has(`sha256:${owner}`))
          await rm(join(this.#folder, name), { force: true });
        continue;
      }
      files.push({ name, bytes: info.size, at: info.mtimeMs, needed: needed.has(`sha256:${digest}`) });
    }
    let used = files.reduce((sum, file) => sum + file.bytes, 0);
    for (const file of files.toSorted((a, b) => a.at - b.at)) {
      if (used <= underBytes) break;
      if (file.needed) continue;
      await rm(join(this.#folder, file.name), { force: true });
      used -= file.bytes;
    }
    return used;
  }

  #path(digest: string): string {
    return join(this.#folder, digest.replace(":", "-"));
  }
}
