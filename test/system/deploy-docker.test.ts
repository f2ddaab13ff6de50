// Deploying on the engine `docker`: the same story, steps and replicas in containers of a real Docker Engine.
import t from "tap";
import { endStory, openStory, tellStory } from "../support/deploy-story.ts";
import { startDocker } from "../support/servers/docker.ts";
import { needs } from "../support/skip.ts";
import { TestCloud } from "../support/stack.ts";
import { dockerEngine } from "../support/story-docker.ts";

t.test(
  "pipeline, deploy, predict, scale, kill, update, roll back, remove on docker",
  { skip: needs("s3", "vault", "docker"), timeout: 500_000 },
  async (t) => {
    const [cloud, server] = await Promise.all([TestCloud.start(t), startDocker(t)]);
    const story = await openStory(t, cloud, await dockerEngine(t, server));
    const answered = await tellStory(story);
    t.comment(`${answered} requests answered under load`);
    const [{ id }] = (await cloud.api.json<{ items: [{ id: string }] }>("/v1/deployments")).items;
    await endStory(story, id);
    const left = await server.docker.listContainers({ all: true });
    t.same(
      left.map((one) => one.Names),
      [],
      "no container is left at the engine, of steps neither",
    );
  },
);
