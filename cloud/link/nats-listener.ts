// Takes agents that come over a NATS network: listens for their hellos, and hands a transport for each to the gateway.
// Several processes share the hellos by a queue group; one that is looked for by name (by another process) has its own. Each session has a connection of its own: an agent that reads
// slowly, or sends much, then holds up nobody else, and cannot get the others' connection cut by the server.
import type { NatsConnection, Subscription } from "@nats-io/nats-core";
import {
  NATS_PREFIX,
  NATS_QUEUE,
  MAX_GREETING_BYTES,
  acceptNats,
  natsHelloSubject,
  natsRefusal,
  natsSocket,
  natsSubjects,
  readNatsHello,
  toConnectorError,
  type Clock,
  type ConnectorError,
  type NatsTransport,
  type Timer,
} from "@sallyport/protocol";
import type { LinkGateway } from "./gateway.ts";

/** Sessions whose connection is being made. */
const MAX_OPENING = 64;
const REFUSED_RETRY_MS = 5_000;
/** The server is asked again this often while it is away. */
const RETRY_MS = 1_000;

export interface NatsListenerOptions {
  readonly gateway: Pick<LinkGateway, "mayGreet" | "accept">;
  /** The subject of hellos that are for this process alone. Absent: those of all agents, shared with the other processes. */
  readonly hello?: string;
  /** A new connection that does not redial by itself. `name`: whom it is for. */
  readonly connect: (name: string) => Promise<NatsConnection>;
  /** First part of all subjects; absent: the usual one. */
  readonly prefix?: string;
  readonly clock: Clock;
  /** Null: agents can come. Otherwise why not; each time that it changes. */
  readonly onState: (problem: ConnectorError | null) => void;
  readonly onFailure: (error: ConnectorError) => void;
}

export class NatsListener {
  readonly #options: NatsListenerOptions;
  readonly #prefix: string;
  #connection: NatsConnection | null = null;
  #hellos: Subscription | null = null;
  #timer: Timer | null = null;
  #opening = 0;
  #wasUp: boolean | null = null;
  #stopped = false;

  constructor(options: NatsListenerOptions) {
    this.#options = options;
    this.#prefix = options.prefix ?? NATS_PREFIX;
  }

  /** Resolves after the first attempt, whatever came of it: it goes on trying. */
  async start(): Promise<void> {
    this.#timer = null;
    try {
      const connection = await this.#options.connect("hellos");
      if (this.#stopped) return await connection.close();
      this.#connection = connection;
      void connection.closed().then((error) => {
        if (this.#connection === connection) this.#away(error ?? new Error("The NATS server closed the connection."));
      });
      void this.#watch(connection);
      const { hello: own } = this.#options;
      this.#hellos = connection.subscribe(own ?? natsHelloSubject(this.#prefix), {
        ...(own === undefined ? { queue: NATS_QUEUE } : {}),
        callback: (error, message) => {
          // A throw from here would stop the client's reader without a word.
          if (error !== null) return this.#refused(connection, error);
          const hello = readNatsHello(this.#prefix, message);
          if (hello === null) return;
          this.#take(hello).catch((caught: unknown) => this.#options.onFailure(toConnectorError(caught)));
        },
      });
      await connection.flush();
      if (connection.isClosed()) return;
      if (this.#wasUp !== true) {
        this.#wasUp = true;
        this.#options.onState(null);
      }
    } catch (caught) {
      this.#away(caught);
    }
  }

  /** Takes no more hellos. Sessions go on until the gateway ends them. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#timer?.cancel();
    const connection = this.#connection;
    this.#connection = null;
    if (connection === null || connection.isClosed()) return;
    // The next hello then goes to another process, or is told at once that there is none.
    this.#hellos?.unsubscribe();
    await connection.flush().catch(() => {});
    await connection.close();
  }

  #away(caught: unknown): void {
    this.#connection = null;
    this.#hellos = null;
    if (this.#stopped || this.#timer !== null) return;
    if (this.#wasUp !== false) {
      this.#wasUp = false;
      this.#options.onState(toConnectorError(caught));
    }
    this.#timer = this.#options.clock.after(RETRY_MS, () => void this.start(), { keepAlive: true });
  }

  async #watch(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status())
      if (status.type === "error") this.#refused(connection, status.error);
  }

  /** The server forbids a subject, or cuts us off: begin anew, after a pause. */
  #refused(connection: NatsConnection, error: Error): void {
    if (this.#connection === connection) this.#away(error);
    void connection.close();
  }

  async #take({ name, session }: { name: string; session: string }): Promise<void> {
    const { gateway } = this.#options;
    const remoteAddress = `nats:${name}`;
    const subjects = natsSubjects(this.#prefix, name, session);
    const refuse = () => this.#connection?.publish(subjects.down, natsRefusal(REFUSED_RETRY_MS));
    if (this.#opening >= MAX_OPENING || !gateway.mayGreet(remoteAddress)) return refuse();
    this.#opening++;
    try {
      const connection = await this.#options.connect(name);
      const transport = await this.#open(connection, name, session).catch((error: unknown) => {
        void connection.close();
        throw error;
      });
      // What the broker says of the other end proves nothing: every frame needs its MAC, wherever the broker runs.
      gateway.accept(transport, remoteAddress, { loopback: false, onAuthenticated: () => transport.trust() });
    } catch (error) {
      refuse();
      throw error;
    } finally {
      this.#opening--;
    }
  }

  async #open(connection: NatsConnection, name: string, session: string): Promise<NatsTransport> {
    return await acceptNats({
      connection,
      socket: natsSocket(connection),
      prefix: this.#prefix,
      name,
      session,
      clock: this.#options.clock,
      greetingBytes: MAX_GREETING_BYTES,
    });
  }
}
