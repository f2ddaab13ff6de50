// The agent's figures at an address of its own, for a Prometheus that cannot read a unix socket. Only when configured, and
// never without a token.
import { createHash, timingSafeEqual } from "node:crypto";
import { createServer, type Server } from "node:http";
import { ConnectorError } from "@sallyport/protocol";
import type { Logger } from "pino";
import { answerProbe, type ProbeSources } from "./probe.ts";

const MAX_CONNECTIONS = 32;
const HEAD_MS = 5_000;

export interface MetricsListenerOptions extends ProbeSources {
  /** `host:port`. */
  readonly listen: string;
  /** The token as it is now. May reject: then nobody gets in. */
  readonly token: () => Promise<string>;
  readonly log: Logger;
}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

export class MetricsListener {
  readonly #options: MetricsListenerOptions;
  readonly #server: Server;
  #told = false;

  constructor(options: MetricsListenerOptions) {
    this.#options = options;
    this.#server = createServer(
      {
        headersTimeout: HEAD_MS,
        requestTimeout: HEAD_MS,
        connectionsCheckingInterval: HEAD_MS,
        maxHeaderSize: 8 * 1024,
      },
      (request, response) =>
        void answerProbe(request, response, options, () => this.#admits(request.headers.authorization)),
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  async listen(): Promise<void> {
    const { listen } = this.#options;
    const url = new URL(`tcp://${listen}`);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#server.once("error", reject);
        this.#server.listen(Number(url.port), url.hostname.replace(/^\[|\]$/g, ""), resolve);
      });
    } catch (cause) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `metrics.listen: the agent cannot listen on ${listen} (${(cause as NodeJS.ErrnoException).code}).`,
        { fix: "Choose an address of this machine and a port that no other program has.", cause },
      );
    }
    this.#server.on("error", (error) => this.#options.log.warn({ err: error }, "the address of the metrics failed"));
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  async #admits(header: string | undefined): Promise<boolean> {
    const given = /^Bearer +(\S+) *$/i.exec(header ?? "")?.[1];
    if (given === undefined) return false;
    try {
      return timingSafeEqual(digest(given), digest(await this.#options.token()));
    } catch (error) {
      if (!this.#told) this.#options.log.warn({ err: error }, "metrics.token cannot be had: nobody is let in");
      this.#told = true;
      return false;
    }
  }
}
