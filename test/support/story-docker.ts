// The engine `docker` for the deploying story: a real Docker Engine, an image for steps and the one of packaging/serving.
import type { Test } from "tap";
import type { StoryEngine } from "./deploy-story.ts";
import { buildImage } from "./built-image.ts";
import type { DockerServer } from "./servers/docker.ts";
import { nodeImage } from "./servers/images.ts";

export async function dockerEngine(t: Test, server: DockerServer): Promise<StoryEngine> {
  const { docker } = server;
  const [steps, serving] = [await nodeImage(docker), await buildImage(server.socket, "serving")];
  t.comment(`image for steps ${steps.slice(0, 19)}, for serving ${serving.slice(0, 19)}`);
  const containers = async (deployment: string) =>
    (await docker.listContainers({ filters: { name: [deployment] } })).map((one) => ({
      id: one.Id,
      replica: one.Names[0]!.slice(one.Names[0]!.indexOf(deployment) + deployment.length + 1),
    }));
  const find = async (deployment: string, replica: string) => {
    const found = (await containers(deployment)).find((one) => one.replica === replica);
    if (found === undefined) throw new Error(`no container of ${replica}`);
    return docker.getContainer(found.id);
  };
  return {
    name: "docker",
    config: `
engines: { docker: { socket: ${server.socket} } }
programs: { node: { path: /usr/bin/node, image: "${steps}" } }
serving:
  listen: LISTEN
  image: "${serving}"
`,
    killReplica: async (_agent, deployment, replica) => void (await (await find(deployment, replica)).kill()),
    removeReplica: async (_agent, deployment, replica) =>
      void (await (await find(deployment, replica)).remove({ force: true, v: true })),
    running: async (_agent, deployment) => (await containers(deployment)).map(({ id, replica }) => `${replica}:${id}`),
  };
}
