// The peer of the durable path: a fastify route that reads a JSON body and answers, and does nothing else. Prints its port.
import fastify from "fastify";

const app = fastify();
app.post("/v1/runs", (_request, reply) => reply.code(202).send({ ok: true }));
await app.listen({ host: "127.0.0.1", port: 0 });
console.log((app.server.address() as { port: number }).port);
