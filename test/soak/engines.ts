// What a sweep needs of an engine: lines of the agent's configuration, where steps reach the targets, and who counts the
// starts of replicas.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { repository, type Teardown } from "../support/launcher.ts";
import { startDocker } from "../support/servers/docker.ts";
import { busyboxFiles, importImage, nodeFiles, nodeImage } from "../support/servers/images.ts";
import { startTargets, type Targets } from "./targets.ts";

export const ENGINES = ["process", "docker"] as const;
export type EngineName = (typeof ENGINES)[number];

export interface SweptEngine {
  readonly name: EngineName;
  readonly targets: Targets;
  /** Top-level lines: engines, programs, serving. PORT stands for the endpoints' port. */
  readonly config: string;
  /** Lines of the policy. */
  readonly policy: string;
  /** The network that a step must ask for to reach the targets; null = none. */
  readonly network: string | null;
  /** Steps and replicas can append to a file of this machine. */
  readonly sharesFiles: boolean;
}

const serving = join(repository, "test/soak/serving.mjs");

async function processEngine(t: Teardown): Promise<SweptEngine> {
  return {
    name: "process",
    targets: await startTargets(t),
    config: `
programs: { node: { path: ${process.execPath} } }
serving: { listen: "127.0.0.1:PORT", process: { path: ${process.execPath}, args: [${JSON.stringify(serving)}] } }
`,
    policy: "",
    network: null,
    sharesFiles: true,
  };
}

/** A real Docker Engine of the sweep's own. Each start of a container is told by the Engine itself. */
async function dockerEngine(t: Teardown): Promise<SweptEngine> {
  const server = await startDocker(t);
  const { docker } = server;
  const network = "sweep";
  const made = await docker.createNetwork({ Name: network, Driver: "bridge" });
  const { IPAM } = (await made.inspect()) as { IPAM: { Config: { Gateway: string }[] } };
  const image = await nodeImage(docker);
  const replicaImage = await importImage(
    docker,
    "sallyport-test/soak-serving",
    [...busyboxFiles(), ...nodeFiles(), { path: "serving.mjs", bytes: readFileSync(serving) }],
    ['ENTRYPOINT ["/usr/bin/node", "/serving.mjs"]'],
  );
  const targets = await startTargets(t, IPAM.Config[0]!.Gateway);
  const events = (await docker.getEvents({
    filters: { type: ["container"], event: ["start"] },
  })) as NodeJS.ReadableStream & { destroy(): void };
  let rest = "";
  events.on("data", (chunk: Buffer) => {
    const lines = (rest + chunk.toString()).split("\n");
    rest = lines.pop()!;
    for (const line of lines) {
      if (line.trim() === "") continue;
      const { Actor } = JSON.parse(line) as { Actor: { Attributes: { name: string } } };
      targets.started(Actor.Attributes.name);
    }
  });
  events.on("error", () => undefined);
  t.teardown(() => events.destroy());
  return {
    name: "docker",
    targets,
    config: `
engines: { docker: { socket: ${server.socket} } }
programs: { node: { path: /usr/bin/node, image: "${image}" } }
serving: { listen: "127.0.0.1:PORT", image: "${replicaImage}" }
`,
    policy: `networks: [${network}]`,
    network,
    sharesFiles: false,
  };
}

export const startEngine = (t: Teardown, name: EngineName): Promise<SweptEngine> =>
  name === "docker" ? dockerEngine(t) : processEngine(t);
