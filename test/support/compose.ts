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
  depends_on?: Record<string, { condition: "service_healthy" | "service_completed_successfully" }> | string[];
  user?: string;
  healthcheck?: { test: string[]; interval: string; timeout: string; retries: number };
  stop_grace_period?: string;
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

export interface CompositionOptions {
  /** For `${NAME:?what it is}` in the file. */
  readonly environment?: Readonly<Record<string, string>>;
  /** Published as, by the port inside; absent: on a free one. Always on loopback. */
  readonly publish?: Readonly<Record<number, number>>;
}

export class Composition {
  readonly #socket: string;
  readonly #publish: Readonly<Record<number, number>>;
  readonly #file: string;
  readonly #project: string;
  readonly services: Readonly<Record<string, Service>>;

  constructor(socket: string, file: string, { environment = {}, publish = {} }: CompositionOptions = {}) {
    this.#socket = socket;
    this.#publish = publish;
    this.#file = file;
    const { name, services, volumes, ...unknown } = parse(interpolated(readFileSync(file, "utf8"), environment), {
      merge: true,
    }) as {
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
        const waited = service.depends_on ?? {};
        if (Array.isArray(waited)) for (const other of waited) await start(other);
        else
          for (const [other, { condition }] of Object.entries(waited)) {
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
    const { depends_on: _waited, restart, read_only, cap_drop, security_opt, tmpfs, ...others } = more;
    const { user, healthcheck, stop_grace_period, ...unknown } = others;
    if (Object.keys(unknown).length > 0) throw new Error(`${name}: not known here: ${Object.keys(unknown).join(", ")}`);
    const here = dirname(this.#file);
    const [program, ...programArgs] = entrypoint ?? [];
    return [
      ...["run", "--detach", "--name", this.container(name)],
      ...(network_mode === undefined
        ? ["--network", this.#project, "--network-alias", name]
        : ["--network", network_mode]),
      ...(hostname === undefined ? [] : ["--hostname", hostname]),
      ...(user === undefined ? [] : ["--user", user]),
      ...(stop_grace_period === undefined ? [] : ["--stop-timeout", String(parseInt(stop_grace_period, 10))]),
      ...(healthcheck === undefined
        ? []
        : [
            ...["--health-cmd", healthcheck.test.slice(1).join(" "), "--health-interval", healthcheck.interval],
            ...["--health-timeout", healthcheck.timeout, "--health-retries", String(healthcheck.retries)],
          ]),
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
        const inside = Number(each.slice(each.lastIndexOf(":") + 1));
        return ["--publish", `127.0.0.1:${this.#publish[inside] ?? ""}:${inside}`];
      }),
      ...(program === undefined ? [] : ["--entrypoint", program]),
      image,
      ...programArgs,
      ...(command ?? []),
    ];
  }
}

/** `${NAME:?text}`: refused without the name, as compose does. */
const interpolated = (text: string, environment: Readonly<Record<string, string>>): string =>
  text.replace(/^(?!\s*#).*$/gm, (line) =>
    line.replace(/\$\{(\w+):\?([^}]*)\}/g, (_all, name: string, what: string) => {
      const value = environment[name];
      if (value === undefined) throw new Error(`${name} is not set: ${what}`);
      return value;
    }),
  );
