// The part of enclosed.test.ts that runs inside the namespace, as a test of its own. Not run otherwise.
// First: what tap puts into its children must not reach the programs that this starts.
import "../../support/untap.mjs";
import { connect } from "node:net";
import t from "tap";
import { TestApi } from "../../support/api.ts";
import { endStory, openStory, tellStory } from "../../support/deploy-story.ts";
import { startDocker } from "../../support/servers/docker.ts";
import { family, socketsOf } from "../../support/sockets.ts";
import { CloudClient } from "../../support/stack.ts";
import { dockerEngine } from "../../support/story-docker.ts";

interface Inside {
  url: string;
  token: string;
  ca: string;
  outside: string;
  inside: string;
}

const attempt = (host: string, port: number): Promise<string> =>
  new Promise((resolve) => {
    const socket = connect({ host, port, timeout: 1500 });
    socket.on("connect", () => {
      socket.destroy();
      resolve("connected");
    });
    socket.on("timeout", () => {
      socket.destroy();
      resolve("nothing");
    });
    socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
  });

/** As /proc/net/tcp has an address: hex, the last byte first. */
const hex = (address: string): string =>
  address
    .split(".")
    .toReversed()
    .map((part) => Number(part).toString(16).padStart(2, "0").toUpperCase())
    .join("");

const given = process.env["INSIDE"];
if (given === undefined) throw new Error("run test/system/enclosed.test.ts");
const where = JSON.parse(given) as Inside;
delete process.env["INSIDE"];

void t.test("inside", { timeout: 530_000 }, async (t) => {
  const port = Number(new URL(where.url).port);
  t.equal(await attempt(where.outside, port), "connected", "the one way out is open");
  t.equal(await attempt(where.outside, port === 1 ? 2 : port - 1), "ECONNREFUSED", "the next port is not");

  const api = new TestApi(where.url, where.ca);
  api.token = where.token;
  const cloud = new CloudClient(where.url, api);
  const docker = await startDocker(t);
  const story = await openStory(t, cloud, await dockerEngine(t, docker), { listenHost: "0.0.0.0" });
  const answered = await tellStory(story);
  t.comment(`${answered} requests answered under load`);
  t.equal(
    await attempt(where.inside, story.port),
    "connected",
    "clients inside reach the endpoint by the network's address",
  );

  const leaving = family(story.agent.program.pid)
    .flatMap((pid) => socketsOf(pid))
    .filter((socket) => socket.state === "01" && socket.remoteAddress.endsWith(hex(where.outside)));
  t.equal(leaving.length, 1, "one connection of the agent leaves the network");
  const [{ id }] = (await api.json<{ items: [{ id: string }] }>("/v1/deployments")).items;
  await endStory(story, id);
});
