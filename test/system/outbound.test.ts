// Invariant 1: the agent listens on no TCP or UDP port, and one connection to the control plane is all that leaves for it.
import t from "tap";
import { tempDir } from "../support/launcher.ts";
import { family, socketsOf } from "../support/sockets.ts";
import { connectAgent, TestCloud } from "../support/stack.ts";

t.test(
  "one outbound connection, nothing that listens",
  { skip: process.platform === "linux" ? false : "reads /proc, which only Linux has", timeout: 180_000 },
  async (t) => {
    const cloud = await TestCloud.start(t);
    const agent = await connectAgent(t, cloud, "lab", {
      config: `stores: [{ id: box, kind: fs, root: ${tempDir(t, "store")} }]\npolicy: { commands: ["artifact.*"], stores: [{ store: box, read: ["**"] }], release: { metadata: true }, ceilings: { streams: 8 } }\n`,
    });
    for (let n = 0; n < 20; n++) await cloud.api.json("/v1/pools/lab/stores/box/artifacts?path=");
    const sockets = family(agent.program.pid).flatMap(socketsOf);
    t.same(
      sockets.filter((socket) => socket.state === "0A" || socket.protocol.startsWith("udp")),
      [],
      "nothing listens",
    );
    t.same(
      sockets.map((socket) => socket.remotePort),
      [cloud.port],
      "one connection, to the control plane",
    );
    t.ok(
      socketsOf(cloud.program.pid).some((socket) => socket.state === "0A"),
      "the same look finds the control plane's listener",
    );
  },
);
