// Stores and secrets as configured now: a reload exchanges them, what is under way keeps those it began with.
import type { Clock } from "@sallyport/protocol";
import type { Config } from "../config/index.ts";
import type { Redactor } from "../redaction/index.ts";
import { openSecrets, type ConfiguredSecrets, type Secrets } from "../secrets/index.ts";
import { openStores, type OpenStores, type Stores } from "../stores/index.ts";

/** How long connections of an earlier configuration serve what began with them. */
const OLD_CONNECTIONS_MS = 3600_000;

export interface ConnectionsOptions {
  config: Config;
  /** Read once: a reload does not see another one. */
  environment: NodeJS.ProcessEnv;
  redactor: Redactor;
  clock: Clock;
}

export class Connections {
  readonly #redactor: Redactor;
  readonly #clock: Clock;
  readonly #environment: NodeJS.ProcessEnv;
  #config: Config;
  #secrets: ConfiguredSecrets;
  #stores: OpenStores;
  readonly secrets: Secrets;
  readonly stores: Stores;

  constructor({ config, environment, redactor, clock }: ConnectionsOptions) {
    this.#redactor = redactor;
    this.#clock = clock;
    this.#environment = { ...environment };
    this.#config = config;
    this.#secrets = this.#openSecrets();
    this.#stores = openStores(config.stores, this.#secrets, clock);
    const ids = () => this.#stores.ids;
    this.secrets = {
      resolve: (text, signal) => this.#secrets.resolve(text, signal),
      named: (name, signal) => this.#secrets.named(name, signal),
    };
    this.stores = {
      get: (id) => this.#stores.get(id),
      get ids() {
        return ids();
      },
    };
  }

  #openSecrets(): ConfiguredSecrets {
    const { secrets } = this.#config;
    return openSecrets({
      ...secrets,
      environment: this.#environment,
      redactor: this.#redactor,
      clock: this.#clock,
    });
  }

  replace(config: Config): void {
    const same =
      JSON.stringify([this.#config.stores, this.#config.secrets]) === JSON.stringify([config.stores, config.secrets]);
    this.#config = config;
    if (same) return;
    const old = { stores: this.#stores, secrets: this.#secrets };
    this.#secrets = this.#openSecrets();
    this.#stores = openStores(config.stores, this.#secrets, this.#clock);
    this.#clock.after(OLD_CONNECTIONS_MS, () => {
      old.secrets.close();
      void old.stores.close().catch(() => undefined);
    });
  }

  async close(): Promise<void> {
    this.#secrets.close();
    await this.#stores.close();
  }
}
