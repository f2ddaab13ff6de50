// Keys that are made at the agent and never leave it but to clients in its network: one for each endpoint, and one from
// which each replica gets a token, so that a restarted agent knows the token of what it takes over. Not each start of it:
// the redactor knows every key for as long as the agent lives, and a replica may crash for ever.
import { createHmac, randomBytes } from "node:crypto";
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { DeploymentId } from "@sallyport/protocol";
import type { WorkName } from "../../engines/engine.ts";
import type { Redactor } from "../../redaction/redactor.ts";

const KEY_BYTES = 32;
const ENDPOINT_PREFIX = "spk_";

export class EndpointKeys {
  readonly #folder: string;
  readonly #redactor: Redactor;
  #replicas: Promise<string> | null = null;

  constructor(stateDir: string, redactor: Redactor) {
    this.#folder = join(stateDir, "endpoints");
    this.#redactor = redactor;
  }

  /** Made when there is none. */
  async endpoint(deployment: DeploymentId): Promise<string> {
    return this.#key(`${deployment}.key`, ENDPOINT_PREFIX);
  }

  async forget(deployment: DeploymentId): Promise<void> {
    await rm(join(this.#folder, `${deployment}.key`), { force: true });
  }

  /** Of one replica: always the same for the same. */
  async token(work: WorkName): Promise<string> {
    this.#replicas ??= this.#key("replicas.secret", "");
    this.#replicas.catch(() => (this.#replicas = null));
    const token = createHmac("sha256", await this.#replicas)
      .update(work)
      .digest("base64url");
    this.#redactor.add(token);
    return token;
  }

  async #key(file: string, prefix: string): Promise<string> {
    const path = join(this.#folder, file);
    let text = (await readFile(path, "utf8").catch(absentOnly)).trim();
    if (text.length < KEY_BYTES) {
      text = prefix + randomBytes(KEY_BYTES).toString("base64url");
      await mkdir(this.#folder, { recursive: true, mode: 0o700 });
      const part = `${path}.part`;
      const handle = await open(part, "w", 0o600);
      try {
        await handle.writeFile(`${text}\n`);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await rename(part, path);
      const folder = await open(this.#folder, "r");
      await folder.sync().finally(() => folder.close());
    }
    this.#redactor.add(text);
    return text;
  }
}

/** Any other fault says nothing of the key: a new one in its place would shut out all who hold the old one. */
function absentOnly(error: NodeJS.ErrnoException): string {
  if (error.code === "ENOENT") return "";
  throw error;
}
