// A control plane of several processes for tests: one database, one folder of keys, perhaps NATS, and before them a
// balancer that hands each connection to the first process of its list that takes it.
import { connect, createServer, type AddressInfo, type Socket } from "node:net";
import { join } from "node:path";
import { binFile, runProgram, tempDir, waitFor, type Teardown } from "./launcher.ts";
import type { NatsServer } from "./nats.ts";
import { postgres } from "./postgres.ts";
import { CEILINGS, freePort, TestCloud, type CloudOptions } from "./stack.ts";

export interface Balancer {
  readonly port: number;
  readonly url: string;
  /** Ports, the preferred first. New connections only. */
  prefer(...ports: number[]): void;
}

export async function startBalancer(t: Teardown): Promise<Balancer> {
  let order: readonly number[] = [];
  const sockets = new Set<Socket>();
  const hold = (socket: Socket): Socket => {
    sockets.add(socket.setNoDelay(true));
    socket.on("close", () => sockets.delete(socket));
    return socket;
  };
  const reach = (port: number): Promise<Socket | null> =>
    new Promise((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("connect", () => resolve(hold(socket)));
      socket.once("error", () => resolve(null));
    });
  const server = createServer({ pauseOnConnect: true }, (client) => {
    hold(client).on("error", () => client.destroy());
    void (async () => {
      for (const port of order) {
        const target = await reach(port);
        if (target === null) continue;
        target.on("error", () => client.destroy());
        target.on("close", () => client.destroy());
        client.on("close", () => target.destroy());
        client.pipe(target);
        target.pipe(client);
        return;
      }
      client.destroy();
    })();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.teardown(async () => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  const { port } = server.address() as AddressInfo;
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    prefer(...ports) {
      order = ports;
    },
  };
}

/** The address of a NATS server with the login of the control plane in it. */
const withLogin = ({ url, user, password }: Pick<NatsServer, "url" | "user" | "password">): string =>
  url.replace("://", `://${user}:${password}@`);

export interface Processes {
  readonly all: readonly TestCloud[];
  readonly balancer: Balancer;
  readonly database: string;
  readonly args: readonly string[];
}

/** Started one after the other; each knows all the others, and reaches them where it can, when this resolves. */
export async function startProcesses(
  t: Teardown,
  count: number,
  {
    nats,
    url,
    unreachable = false,
    ...options
  }: Pick<CloudOptions, "tree" | "nodeArgs" | "env"> & {
    nats?: NatsServer;
    /** https:// of a balancer of the caller's: the processes have TLS then, towards each other too. */
    url?: string;
    /** At the addresses that they give each other nobody answers. Without NATS they are then not linked at all. */
    unreachable?: boolean;
  } = {},
): Promise<Processes> {
  const [database, balancer] = [await (await postgres()).database(), await startBalancer(t)];
  const keys = join(tempDir(t, "keys"), "keys");
  const made = await runProgram(t, {
    name: "keys",
    args: [binFile("cloud/bin/sallyport-cloud", options.tree), "keys", keys],
  });
  if (made.code !== 0) throw new Error(`no keys were made:\n${made.stderr}`);
  const args = ["--keys", keys, "--url", url ?? balancer.url];
  if (nats !== undefined) args.push("--nats-url", withLogin(nats));
  const all: TestCloud[] = [];
  for (let n = 0; n < count; n++) {
    const port = url === undefined ? 0 : await freePort();
    const peer =
      url === undefined
        ? [
            "--peer-listen",
            "127.0.0.1:0",
            // Nothing listens on port 1.
            ...(unreachable ? ["--peer-url", "ws://127.0.0.1:1"] : []),
          ]
        : ["--peer-listen", `0.0.0.0:${port}`, "--peer-url", `wss://127.0.0.1:${port}`];
    const token = all[0]?.api.token ?? null;
    all.push(
      await TestCloud.start(t, { ...options, tls: url !== undefined, database, args: [...args, ...peer], token }),
    );
  }
  balancer.prefer(...all.map((one) => one.port));
  const linked = !unreachable || nats !== undefined;
  await waitFor("the processes to know each other", async () =>
    (await Promise.all(all.map(processesOf))).every(
      ({ items }) => items.filter((one) => !linked || one.state !== "unreachable").length === count,
    ),
  );
  return { all, balancer, database, args };
}

export interface ProcessesAnswer {
  items: { id: string; self: boolean; state: string; way: string | null; sessions: number }[];
  backplane: { kind: string; connected: boolean; text: string };
}

export const processesOf = (cloud: TestCloud): Promise<ProcessesAnswer> =>
  cloud.api.json<ProcessesAnswer>("/v1/processes");

/** Of an agent that moves with its link at once, and whose one store is a folder that may be read and written. */
export const lakeConfig = (folder: string): string => `
link: { stableAfterMs: 0 }
stores: [{ id: lake, kind: fs, root: ${folder} }]
policy:
  ${CEILINGS}
  commands: ["artifact.*"]
  stores: [{ store: lake, read: ["**"], write: ["**"] }]
  release: { metadata: true, previews: { rows: 10 }, raw: true }
`;
