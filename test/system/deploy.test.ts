// Deploying on the engine `process`, the whole story with real partners; and what goes on without the control plane.
import t from "tap";
import { endStory, openStory, tellStory, detail } from "../support/deploy-story.ts";
import { needs } from "../support/skip.ts";
import { waitFor } from "../support/launcher.ts";
import { TestCloud } from "../support/stack.ts";
import { processEngine } from "../support/story-process.ts";

t.test(
  "pipeline, deploy, predict, scale, kill, update, roll back, remove on process",
  {
    skip: needs("s3", "vault"),
    timeout: 400_000,
  },
  async (t) => {
    const cloud = await TestCloud.start(t);
    const engine = processEngine();
    const story = await openStory(t, cloud, engine);
    const answered = await tellStory(story);
    t.comment(`${answered} requests answered under load`);
    const [{ id }] = (await cloud.api.json<{ items: [{ id: string }] }>("/v1/deployments")).items;

    await t.test("with the control plane gone for the whole time, a killed replica comes back", async (t) => {
      const now = await detail(story, id);
      await cloud.program.killHard();
      const before = await engine.running(story.agent, id);
      const [victim] = before;
      await engine.killReplica(story.agent, id, victim!.slice(0, victim!.indexOf(":")));
      await waitFor(
        "another process in its place",
        async () => {
          const after = await engine.running(story.agent, id);
          return after.length === before.length && !after.includes(victim!);
        },
        { timeoutMs: 60_000 },
      );
      t.pass("it is back");
      await cloud.start();
      await waitFor(
        "the page to tell the same",
        async () => {
          const seen = await detail(story, id);
          return (
            seen.state === "available" &&
            seen.replicasReady === now.replicasReady &&
            seen.observed!.replicas.some((one) => one.starts === 2)
          );
        },
        { timeoutMs: 60_000 },
      );
    });

    await endStory(story, id);
  },
);
