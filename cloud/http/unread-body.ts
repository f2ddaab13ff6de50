// What becomes of a body whose answer is out before its end: it is read and dropped for a while. Closing the connection
// at once, as Node does where the client asked for that, resets it under the sender, who then never sees the answer.
// Also limits how long a body that is read before its route runs may take. Hooks of the root; routes need not know.
import type { Clock, Timer } from "@sallyport/protocol";
import type { FastifyRequest } from "fastify";
import type { ApiApp } from "./routes.ts";

/** From the head of a request to the end of a body that is read as a whole (JSON). */
const BODY_MS = 30_000;
/** How long the rest of a body may still come once its answer is out. */
const REST_MS = 10_000;

export function limitBodies(app: ApiApp, clock: Clock): void {
  // A whole request may take hours (an upload); the body of one that is read before its route runs may not, nor may the
  // rest of one that was answered already. Without this a byte a minute would hold a socket for ever.
  const cutUnless = (request: FastifyRequest, withinMs: number): Timer =>
    clock.after(withinMs, () => {
      if (!request.raw.complete) request.raw.destroy();
    });
  const reading = new WeakMap<FastifyRequest, Timer>();
  app.addHook("preParsing", (request, _reply, _payload, done) => {
    if (!request.raw.complete) reading.set(request, cutUnless(request, BODY_MS));
    done();
  });
  app.addHook("preValidation", (request, _reply, done) => {
    reading.get(request)?.cancel();
    done();
  });

  /** Answered early: whether the connection is to be closed once the rest has come. */
  const early = new WeakMap<FastifyRequest, { thenClose: boolean }>();
  app.addHook("onSend", (request, reply, _payload, done) => {
    const { complete, headers } = request.raw;
    if (!complete && (headers["transfer-encoding"] !== undefined || Number(headers["content-length"]) > 0)) {
      early.set(request, { thenClose: !reply.raw.shouldKeepAlive || reply.hasHeader("connection") });
      void reply.removeHeader("connection");
      reply.raw.shouldKeepAlive = true;
    }
    done();
  });
  app.addHook("onResponse", (request, _reply, done) => {
    const { raw } = request;
    const { thenClose = false } = early.get(request) ?? {};
    if (!raw.complete && !raw.destroyed) {
      const cut = cutUnless(request, REST_MS);
      raw.once("close", () => cut.cancel());
      raw.resume();
    }
    if (thenClose) {
      if (raw.closed) raw.socket.destroySoon();
      else raw.once("close", () => raw.socket.destroySoon());
    }
    done();
  });
}
