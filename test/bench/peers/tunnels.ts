// Tunnels of others to the same S3 server, with what they are installed by (peers/install). Each dials out from where
// the agent is and gives a port where the control plane is, as the link does.
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import { waitFor, type Teardown } from "../../support/launcher.ts";
import { freePort } from "../../support/stack.ts";

export interface Tunnel {
  readonly name: string;
  readonly version: string;
  /** Where the target now answers. */
  readonly port: number;
  /** Both ends. */
  readonly pids: readonly number[];
}

interface Recipe {
  readonly name: string;
  readonly installedBy: string;
  start(t: Teardown, folder: string, targetPort: number): Promise<Tunnel | null>;
}

const find = (...paths: string[]): string | undefined => paths.find((path) => existsSync(path));
const inCache = (name: string): string =>
  join(process.env["SALLYPORT_SERVERS_CACHE"] ?? join(homedir(), ".cache/sallyport-servers"), "bin", name);

function run(t: Teardown, command: string, args: string[], onError: (text: string) => void): ChildProcess {
  const child = spawn(command, args, { stdio: ["ignore", "ignore", "pipe"] });
  child.stderr!.setEncoding("utf8").on("data", onError);
  const ended = new Promise((resolve) => child.once("exit", resolve));
  t.teardown(async () => {
    child.kill("SIGTERM");
    await ended;
  });
  return child;
}

const answers = (port: number): Promise<true> =>
  waitFor(
    `port ${port} to answer`,
    () =>
      new Promise<boolean>((resolve) => {
        const socket = connect({ port, host: "127.0.0.1" });
        socket.once("connect", () => (socket.destroy(), resolve(true))).once("error", () => resolve(false));
      }),
  );

/** OpenSSH: one TCP connection, its encryption cannot be turned off. A server of its own on loopback, with keys made for it. */
const ssh: Recipe = {
  name: "ssh -R",
  installedBy: "apt-get install openssh-server",
  async start(t, folder, targetPort) {
    const sshd = find("/usr/sbin/sshd");
    const client = find("/usr/bin/ssh");
    if (sshd === undefined || client === undefined) return null;
    for (const name of ["host", "user"])
      execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(folder, name)]);
    writeFileSync(join(folder, "authorized"), readFileSync(join(folder, "user.pub")));
    chmodSync(folder, 0o700);
    // It wants the folder of its privilege separation, and makes none.
    if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true });
    const port = await freePort();
    writeFileSync(
      join(folder, "sshd.conf"),
      `ListenAddress 127.0.0.1:${port}\nHostKey ${join(folder, "host")}\nPidFile none\nAuthorizedKeysFile ${join(folder, "authorized")}\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n`,
    );
    let log = "";
    const server = run(t, sshd, ["-D", "-e", "-f", join(folder, "sshd.conf")], (text) => (log += text));
    await answers(port);
    const open = await freePort();
    const agent = run(
      t,
      client,
      [
        "-N",
        "-p",
        String(port),
        "-i",
        join(folder, "user"),
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        `UserKnownHostsFile=${join(folder, "known")}`,
        "-o",
        "ExitOnForwardFailure=yes",
        "-F",
        "none",
        "-R",
        `127.0.0.1:${open}:127.0.0.1:${targetPort}`,
        "127.0.0.1",
      ],
      (text) => (log += text),
    );
    await answers(open).catch((error: unknown) => {
      throw new Error(`ssh -R did not come up:\n${log}`, { cause: error });
    });
    const version =
      /OpenSSH_\S+/.exec(
        execFileSync(client, ["-V"], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }) || sshVersion(client),
      )?.[0] ?? "unknown";
    return { name: "ssh -R", version, port: open, pids: [server.pid!, agent.pid!] };
  },
};
/** It says its version on the error stream. */
function sshVersion(client: string): string {
  return execFileSync("sh", ["-c", `${client} -V 2>&1`], { encoding: "utf8" });
}

/** bore: a TCP connection per stream, no encryption, no WebSocket. */
const bore: Recipe = {
  name: "bore",
  installedBy: "cargo install bore-cli --version 0.6.0",
  async start(t, _folder, targetPort) {
    const binary = find(inCache("bore"), join(homedir(), ".cargo/bin/bore"));
    if (binary === undefined) return null;
    const open = await freePort();
    // Its control port is fixed; that and the data port on loopback alone.
    const server = run(
      t,
      binary,
      ["server", "--bind-addr", "127.0.0.1", "--bind-tunnels", "127.0.0.1", "--min-port", "1024"],
      () => {},
    );
    await answers(7835);
    const agent = run(t, binary, ["local", String(targetPort), "--to", "127.0.0.1", "--port", String(open)], () => {});
    await answers(open);
    const version = execFileSync(binary, ["--version"], { encoding: "utf8" }).trim().replace(/^.* /, "");
    return { name: "bore", version, port: open, pids: [server.pid!, agent.pid!] };
  },
};

const RECIPES: readonly Recipe[] = [ssh, bore];

/** Those that this machine has. `missing`: the others, with what brings them. */
export async function startTunnels(
  t: Teardown,
  folder: (name: string) => string,
  targetPort: number,
): Promise<{ tunnels: Tunnel[]; missing: string[] }> {
  const tunnels: Tunnel[] = [];
  const missing: string[] = ["chisel, frp, rathole, wstunnel (no recipe)"];
  for (const recipe of RECIPES) {
    const tunnel = await recipe.start(t, folder(recipe.name.replaceAll(/\W/g, "")), targetPort);
    if (tunnel === null) missing.push(`${recipe.name} (${recipe.installedBy})`);
    else tunnels.push(tunnel);
  }
  return { tunnels, missing };
}
