// Enrolments: a single-use secret that lets one agent join a pool, shown once with the lines that use it.
import { ConnectorError, enrollmentIdSchema, type Clock } from "@sallyport/protocol";
import { z } from "zod";
import { enrolmentCommands, newEnrolment, type EnrolmentTrust } from "../../features/agents/index.ts";
import type { EnrollmentRow, Store } from "../../store/index.ts";
import {
  enrollmentSchema,
  madeEnrollmentSchema,
  newEnrollmentSchema,
  page,
  pageQuerySchema,
  type Enrollment,
} from "../api.ts";
import { madeOnce, notFound, type RoutePlugin } from "../routes.ts";

const params = z.object({ id: enrollmentIdSchema });

export interface EnrollmentDeps {
  store: Store;
  clock: Clock;
  trust: EnrolmentTrust;
  /** What agents dial. */
  publicUrl: () => string;
  /** Name of the agent's image. */
  agentImage: string;
}

export const enrollmentRoutes =
  (deps: EnrollmentDeps): RoutePlugin =>
  async (app) => {
    const { store, clock, trust, publicUrl, agentImage } = deps;

    const view = (row: EnrollmentRow): Enrollment => ({
      id: row.id,
      pool: { id: row.pool, name: row.poolName },
      name: row.name,
      state:
        row.usedAt !== null
          ? "used"
          : row.withdrawnAt !== null
            ? "withdrawn"
            : row.expiresAt <= clock.now()
              ? "expired"
              : "waiting",
      createdAt: row.createdAt,
      expiresAt: row.expiresAt,
      usedAt: row.usedAt,
      agent: row.replica,
      refusals: row.refusals,
    });

    app.get(
      "/v1/enrollments",
      {
        schema: {
          tags: ["enrollments"],
          summary: "Enrolments, newest first",
          querystring: pageQuerySchema,
          response: { 200: page(enrollmentSchema) },
        },
      },
      async (request) => {
        const found = await store.enrollments(app.scope(request), request.query);
        return { items: found.items.map(view), nextCursor: found.nextCursor };
      },
    );

    app.get(
      "/v1/enrollments/:id",
      { schema: { tags: ["enrollments"], summary: "One enrolment", params, response: { 200: enrollmentSchema } } },
      async (request) => {
        const row = await store.enrollment(app.scope(request), request.params.id);
        if (row === null) throw notFound("enrolment of that id");
        return view(row);
      },
    );

    app.post(
      "/v1/enrollments",
      {
        schema: {
          tags: ["enrollments"],
          summary: "Make a single-use enrolment secret",
          body: newEnrollmentSchema,
          response: { 201: madeEnrollmentSchema },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const { key, earlier } = await app.idempotent(request);
        if (earlier !== null) throw madeOnce("enrolment secret", earlier);
        const { row, secret } = await newEnrolment(store, scope, {
          pool: request.body.pool,
          name: request.body.name ?? null,
          now: clock.now(),
          trust,
          idempotency: key === null ? null : (id) => ({ ...key, answer: { status: 409, body: { id } } }),
        });
        const url = publicUrl();
        return reply
          .code(201)
          .send({ ...view(row), secret, url, commands: enrolmentCommands(url, secret, agentImage) });
      },
    );

    app.delete(
      "/v1/enrollments/:id",
      {
        schema: {
          tags: ["enrollments"],
          summary: "Withdraw an enrolment that was not used",
          params,
          response: { 204: z.null() },
        },
      },
      async (request, reply) => {
        const scope = app.scope(request);
        const row = await store.enrollment(scope, request.params.id);
        if (row === null) throw notFound("enrolment of that id");
        if (!(await store.withdrawEnrollment(scope, request.params.id, clock.now())) && row.withdrawnAt === null) {
          throw new ConnectorError("CONFLICT", "This enrolment was used already.", {
            fix: "Revoke the agent that joined with it.",
            details: { agent: row.replica },
          });
        }
        return reply.code(204).send(null);
      },
    );
  };
