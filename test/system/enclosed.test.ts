// The customer's network as it is meant to be: nothing comes in, and one host and port is all that goes out. Store,
// secrets, engine, replicas and the clients of the endpoint lie inside; only the control plane is outside. The deploying
// story runs inside (enclosed/inside.ts); this side holds the firewall and looks at it.
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import t from "tap";
import { enclose, needsEnclosure } from "../support/netns.ts";
import { needs } from "../support/skip.ts";
import { freePort, TestCloud } from "../support/stack.ts";

t.test(
  "the whole story behind a firewall with one way out",
  { skip: needs("s3", "vault", "docker") || needsEnclosure(), timeout: 560_000 },
  async (t) => {
    const port = await freePort();
    const enclosure = enclose(t, port);
    const cloud = await TestCloud.start(t, { tls: true, port, args: ["--name", enclosure.outside] });
    const [nsenter, ...enter] = enclosure.enter;
    await t.spawn(
      nsenter!,
      [...enter, process.execPath, fileURLToPath(new URL("./enclosed/inside.ts", import.meta.url))],
      {
        timeout: 540_000,
        env: {
          ...process.env,
          INSIDE: JSON.stringify({
            url: `https://${enclosure.outside}:${port}`,
            token: cloud.api.token,
            ca: cloud.ca,
            outside: enclosure.outside,
            inside: enclosure.inside,
          }),
        },
      },
      "inside",
    );

    const reached = await new Promise<string>((resolve) => {
      const socket = connect({ host: enclosure.inside, port: 22_222, timeout: 1500 });
      socket.on("connect", () => resolve("connected"));
      socket.on("timeout", () => {
        socket.destroy();
        resolve("nothing");
      });
      socket.on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    });
    t.equal(reached, "nothing", "from outside nothing is reached, not even a refusal");
    const dropped = enclosure.dropped();
    t.ok(dropped["from outside"]! > 0, "the firewall dropped that, and it counts");
    t.ok(dropped["to outside"]! > 0, "what tried another port from inside was refused, and counted");
    t.comment(JSON.stringify(dropped));
  },
);
