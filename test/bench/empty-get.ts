// The peer of the HTTP API: a fastify route that answers and does nothing else. Prints its port.
import fastify from "fastify";

const app = fastify();
app.get("/v1/empty", () => ({ ok: true }));
await app.listen({ host: "127.0.0.1", port: 0 });
console.log((app.server.address() as { port: number }).port);
