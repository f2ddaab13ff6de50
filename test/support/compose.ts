// What `docker compose up` does with one of our files, by `docker run`: for machines whose client has no compose. It
// knows the words that our files use and refuses every other, so a file never says more than a test has tried.
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { promisify } from "node:util";
import { parse } from "yaml";
import { cleanEnv, waitFor } from "./launcher.ts";

interface Service {
  image: string;
  hostname?: string;
  entrypoint?: string[];
  command?: string[];
  environment?: Record<string, string>;
  volumes?: string[];
  ports?: string[];
  network_mode?: "none";
  depends_on?: Record<string, { condition: "service_healthy" | "service_completed_successfully" }>;
  restart?: string;
  read_only?: boolean;
  cap_drop?: string[];
  security_opt?: string[];
  tmpfs?: string[];
}

/** The docker client of PATH on one engine. Rejects with what it wrote to stderr. */
export async function docker(socket: string, ...args: string[]): Promise<string> {
  const options = { env: cleanEnv({ DOCKER_HOST: `unix://${socket}` }), maxBuffer: 64 * 1024 * 1024 };
  return (await promisify(execFile)("docker", args, options)).stdout.trim();
}

export class Composition {
  readonly #socket: string;
  readonly #file: string;
  readonly #project: string;
  readonly services: Readonly<Record<string, Service>>;

  constructor(socket: string, file: string) {
    this.#socket = socket;
    this.#file = file;
    const { name, services, volumes, ...unknown } = parse(readFileSync(file, "utf8")) as {
      name: string;
      services: Record<string, Service>;
      volumes: Record<string, null>;
    };
    if (Object.keys(unknown).length > 0) throw new Error(`${file}: not known here: ${Object.keys(unknown).join(", ")}`);
    this.#project = name;
    this.services = services;
    for (const volume of Object.values(services).flatMap((service) => service.volumes ?? [])) {
      const from = volume.split(":")[0]!;
      if (!from.startsWith(".") && !Object.hasOwn(volumes, from)) throw new Error(`${file}: no volume ${from}`);
    }
  }

  container(service: string): string {
    return `${this.#project}-${service}-1`;
  }

  /** All services, each after those that it waits for. Again: what runs is left alone, what ended is started. */
  async up(): Promise<void> {
    await docker(this.#socket, "network", "create", this.#project).catch(() => undefined);
    const begun = new Map<string, Promise<void>>();
    const start = (name: string): Promise<void> => {
      const service = this.services[name];
      if (service === undefined) throw new Error(`${this.#file}: no service ${name}`);
      const known = begun.get(name);
      if (known !== undefined) return known;
      const starting = (async () => {
        for (const [other, { condition }] of Object.entries(service.depends_on ?? {})) {
          await start(other);
          await this.#reached(other, condition);
        }
        const status = ["inspect", "--format", "{{.State.Status}}", this.container(name)];
        const state = await docker(this.#socket, ...status).catch(() => "absent");
        if (state === "absent") await docker(this.#socket, ...this.#run(name, service));
        else if (state !== "running") await docker(this.#socket, "start", this.container(name));
      })();
      begun.set(name, starting);
      return starting;
    };
    await Promise.all(Object.keys(this.services).map(start));
  }

  /** Published on a free port, whichever the file names: several may run at a time. */
  async port(service: string, inside: number): Promise<number> {
    const line = await docker(this.#socket, "port", this.container(service), `${inside}/tcp`);
    return Number(line.slice(line.lastIndexOf(":") + 1));
  }

  async #reached(name: string, condition: "service_healthy" | "service_completed_successfully"): Promise<void> {
    await waitFor(
      `${name}: ${condition}`,
      async () => {
        const text = await docker(this.#socket, "inspect", "--format", "{{json .State}}", this.container(name));
        const state = JSON.parse(text) as { Status: string; ExitCode: number; Health?: { Status: string } };
        if (condition === "service_healthy") return state.Health?.Status === "healthy";
        return state.Status === "exited" && state.ExitCode === 0;
      },
      { timeoutMs: 60_000, everyMs: 200 },
    );
  }

  #run(name: string, service: Service): string[] {
    const { image, hostname, entrypoint, command, environment, volumes, ports, network_mode, ...more } = service;
    const { depends_on: _waited, restart, read_only, cap_drop, security_opt, tmpfs, ...unknown } = more;
    if (Object.keys(unknown).length > 0) throw new Error(`${name}: not known here: ${Object.keys(unknown).join(", ")}`);
    const here = dirname(this.#file);
    const [program, ...programArgs] = entrypoint ?? [];
    return [
      ...["run", "--detach", "--name", this.container(name)],
      ...(network_mode === undefined
        ? ["--network", this.#project, "--network-alias", name]
        : ["--network", network_mode]),
      ...(hostname === undefined ? [] : ["--hostname", hostname]),
      ...(restart === undefined ? [] : ["--restart", restart]),
      ...(read_only === true ? ["--read-only"] : []),
      ...(cap_drop ?? []).flatMap((each) => ["--cap-drop", each]),
      ...(security_opt ?? []).flatMap((each) => ["--security-opt", each]),
      ...(tmpfs ?? []).flatMap((each) => ["--tmpfs", each]),
      ...Object.entries(environment ?? {}).flatMap(([key, value]) => ["--env", `${key}=${value}`]),
      ...(volumes ?? []).flatMap((each) => {
        const [from, ...rest] = each.split(":");
        const source = from!.startsWith(".") ? resolve(here, from!) : `${this.#project}_${from!}`;
        return ["--volume", [source, ...rest].join(":")];
      }),
      ...(ports ?? []).flatMap((each) => {
        const [address, , inside] = each.split(":");
        return ["--publish", `${address}::${inside}`];
      }),
      ...(program === undefined ? [] : ["--entrypoint", program]),
      image,
      ...programArgs,
      ...(command ?? []),
    ];
  }
}
