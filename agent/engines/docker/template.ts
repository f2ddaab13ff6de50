// The one body with which a container is made. Closed: a request is never taken and filtered, it is built from here, and
// what can differ between two containers is what `ContainerAbout` and the named parts of a spec say. Pure.
//
// Left out on purpose, so that the Engine's own defaults hold: Binds, Devices, CapAdd, Privileged, PidMode, UTSMode,
// UsernsMode, MaskedPaths and ReadonlyPaths (kernel files stay masked), Runtime, PortBindings, any volume driver, and
// the seccomp profile.
import type { ContainerCreateOptions } from "dockerode";
import { ConnectorError } from "@sallyport/protocol";
import type { ContainerSpec, WorkName, WorkSpec } from "../engine.ts";

/** Where the volume of a container is mounted. Its root is root's: the work folder in it cannot be replaced by the work. */
export const VOLUME_TARGET = "/sallyport";
/** In the volume, the work's own. */
export const WORK_FOLDER = `${VOLUME_TARGET}/work`;

export const LABEL_AGENT = "sallyport.agent";
export const LABEL_WORK = "sallyport.work";
export const LABEL_POOL = "sallyport.pool";
const LABEL_TEMPLATE = "sallyport.template";
const TEMPLATE_VERSION = "1";

const PIDS_LIMIT = 1024;
const TMP_BYTES = 64 * 1024 ** 2;
const SHARED_MEMORY_BYTES = 64 * 1024 ** 2;
/** An Engine cannot give more than it has itself: kept low. */
const OPEN_FILES = 8192;

export interface ContainerAbout {
  agentId: string;
  /** Pool of the agent; null = it has not joined one. */
  pool: string | null;
  /** `sha256:…`, as the Engine itself calls the image: the name was resolved and compared before. */
  imageId: string;
  /** Id of a network of the Engine. */
  network: { kind: "none" } | { kind: "serving" | "named"; id: string };
  user: { uid: number; gid: number };
}

export const containerName = (work: WorkName): string => `sallyport.${work}`;

/** Also a container's name behind its prefix. */
export const isWorkName = (name: string): name is WorkName => /^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$/.test(name);

const refuse = (message: string): ConnectorError => new ConnectorError("ENGINE_FAILED", message);

/** Throws ENGINE_FAILED for values that no container can have. */
export function containerBody(
  spec: WorkSpec & { container: ContainerSpec },
  about: ContainerAbout,
): ContainerCreateOptions {
  const { name, executable, args, env, container } = spec;
  const { cpus, memoryBytes } = container.resources;
  if (!isWorkName(name)) throw refuse("The work's name cannot be a container's name.");
  if (!/^sha256:[0-9a-f]{64}$/.test(about.imageId))
    throw refuse(`Work ${name} has no image that is named by its content.`);
  if (about.network.kind !== "none" && !/^[0-9a-z]{12,64}$/.test(about.network.id))
    throw refuse(`Work ${name} has a network that is not named by its id.`);
  for (const text of [executable, ...args])
    if (text.includes("\0"))
      throw refuse(`An argument of work ${name} holds a zero byte, which no program can be given.`);
  if (executable !== "" && !executable.startsWith("/"))
    throw refuse(`The executable of work ${name} is not an absolute path of its image.`);
  if (!(cpus > 0 && Number.isFinite(cpus)) || !(memoryBytes > 0 && Number.isSafeInteger(memoryBytes)))
    throw refuse(`Work ${name} has no limits.`);
  return {
    Image: about.imageId,
    // Null and empty: the image's own.
    ...({ Entrypoint: executable === "" ? null : [executable] } as { Entrypoint: string[] }),
    Cmd: [...args],
    Env: environment(name, env),
    WorkingDir: WORK_FOLDER,
    User: `${about.user.uid}:${about.user.gid}`,
    Hostname: "work",
    Labels: {
      [LABEL_AGENT]: about.agentId,
      [LABEL_WORK]: name,
      [LABEL_TEMPLATE]: TEMPLATE_VERSION,
      ...(about.pool === null ? {} : { [LABEL_POOL]: about.pool }),
    },
    AttachStdin: false,
    AttachStdout: false,
    AttachStderr: false,
    OpenStdin: false,
    Tty: false,
    // An image may name another signal, and a command that the Engine runs in it again and again.
    StopSignal: "SIGTERM",
    Healthcheck: { Test: ["NONE"] },
    HostConfig: {
      AutoRemove: false,
      CapDrop: ["ALL"],
      // An internal network's resolver asks the machine's servers for what it does not know: a way out. Here it asks nobody.
      Dns: about.network.kind === "named" ? [] : ["127.0.0.1"],
      Init: true,
      IpcMode: "private",
      // The one driver that keeps bytes as they are; json-file replaces what is not UTF-8.
      LogConfig: { Type: "local", Config: { "max-size": "20m", "max-file": "5", compress: "false" } },
      Memory: memoryBytes,
      MemorySwap: memoryBytes,
      // No Source: a volume without a name, which goes with its container.
      Mounts: [
        {
          Type: "volume",
          Target: VOLUME_TARGET,
          VolumeOptions: { NoCopy: true, Labels: { [LABEL_AGENT]: about.agentId } },
        },
      ] as unknown as NonNullable<NonNullable<ContainerCreateOptions["HostConfig"]>["Mounts"]>,
      NanoCpus: Math.max(1, Math.round(cpus * 100)) * 10_000_000,
      NetworkMode: about.network.kind === "none" ? "none" : about.network.id,
      PidsLimit: PIDS_LIMIT,
      ReadonlyRootfs: true,
      RestartPolicy: { Name: "no" },
      SecurityOpt: ["no-new-privileges:true"],
      ShmSize: SHARED_MEMORY_BYTES,
      Tmpfs: { "/tmp": `rw,nosuid,nodev,noexec,size=${TMP_BYTES},mode=1777` },
      Ulimits: [
        { Name: "core", Soft: 0, Hard: 0 },
        { Name: "nofile", Soft: OPEN_FILES, Hard: OPEN_FILES },
      ],
    },
  };
}

/** Refused without the value: it may be a secret. */
function environment(work: string, env: Readonly<Record<string, string>>): string[] {
  return Object.entries(env).map(([name, value]) => {
    if (name === "" || /[=\0]/.test(name) || value.includes("\0"))
      throw refuse(`Work ${work} has a variable that no program can be given: ${JSON.stringify(name.slice(0, 80))}.`);
    return `${name}=${value}`;
  });
}
