// The other processes of the router's bench: a replica that answers at once, or the router before replicas.
//   replica PORT...             router LISTEN KEY PORT...
import { createServer } from "node:net";
import { systemClock, type DeploymentId } from "@sallyport/protocol";
import { pino } from "pino";
import { createRouter } from "../../agent/router/index.ts";

const [kind, ...rest] = process.argv.slice(2);
process.on("disconnect", () => process.exit(0));

if (kind === "replica") {
  const body = JSON.stringify({
    model_name: "m",
    outputs: [{ name: "y", shape: [1, 10], datatype: "FP32", data: Array(10).fill(0.1) }],
  });
  const answer = Buffer.from(
    `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  // Bare sockets: the replica must not be what is measured. It knows requests with a content-length and no others.
  await Promise.all(
    rest.map(
      (port) =>
        new Promise<void>((resolve) => {
          createServer({ noDelay: true }, (socket) => {
            let need = -1;
            let got = 0;
            socket.on("error", () => {});
            socket.on("data", (chunk) => {
              if (need === -1) {
                const end = chunk.indexOf("\r\n\r\n");
                const length = /content-length: *(\d+)/i.exec(chunk.toString("latin1", 0, end));
                need = end + 4 + Number(length?.[1] ?? 0);
                got = 0;
              }
              got += chunk.length;
              if (got >= need) {
                need = -1;
                socket.write(answer);
              }
            });
          }).listen(Number(port), "127.0.0.1", resolve);
        }),
    ),
  );
} else {
  const [listen, key, ...ports] = rest;
  const router = createRouter({
    listen: listen!,
    advertise: null,
    tls: null,
    clock: systemClock,
    log: pino({ level: "silent" }),
  });
  router.set({
    deployment: "dep" as DeploymentId,
    name: "m",
    key: key!,
    holdMs: 1000,
    replicas: ports.map((port, i) => ({
      name: `r1.${i}`,
      address: { kind: "tcp", host: "127.0.0.1", port: Number(port) },
      token: "token",
    })),
  });
  await router.start();
  if (router.problem !== null) throw router.problem;
}
process.send?.("ready");
