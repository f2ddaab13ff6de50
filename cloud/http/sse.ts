// /v1/changes: server-sent events that say what changed, never what it is now; pages fetch that.
//   event: ready   {"n"}                      at the beginning: where the stream stands
//   event: change  {"entity","id","version","n"}
//   event: reset   {"n"}                      what was missed is no longer kept: fetch everything, go on from n
// A reader names the last number it saw by Last-Event-ID or ?after and misses nothing. A comment every 15 s keeps
// proxies awake. The credential is looked at again every few seconds: revoked means closed.
import { ConnectorError, type Clock, type Timer } from "@sallyport/protocol";
import { z } from "zod";
import type { Authenticator } from "../auth/index.ts";
import type { ChangeRow, Store } from "../store/index.ts";
import type { RoutePlugin } from "./routes.ts";

const HEARTBEAT_MS = 15_000;
/** A revoked credential's streams end within 10 s. */
const RECHECK_MS = 5_000;
const MAX_STREAMS_PER_USER = 32;
/** What a reader that does not read may cost; it is cut off then and replays when it comes back. */
const MAX_PENDING_BYTES = 256 * 1024;
const REPLAY_PAGE = 500;
/** Changes kept for a reader that is still at its replay. */
const MAX_HELD = 5_000;
/** How long the end of a stream may take to leave. */
const CLOSE_MS = 1_000;

export interface ChangeStreams {
  routes: RoutePlugin;
  /** Ends all of them: the server is stopping. */
  closeAll(): void;
  readonly open: number;
}

export function changeStreams(deps: { store: Store; authenticator: Authenticator; clock: Clock }): ChangeStreams {
  const { store, authenticator, clock } = deps;
  const streams = new Set<() => void>();
  const perUser = new Map<string, number>();

  const routes: RoutePlugin = async (app) => {
    app.get(
      "/v1/changes",
      {
        schema: {
          tags: ["changes"],
          summary: "What changed, as server-sent events",
          querystring: z.object({ after: z.coerce.number().int().nonnegative().optional() }),
          headers: z.object({
            "last-event-id": z
              .string()
              .regex(/^[0-9]{1,16}$/, "a number that a `change` event had")
              .optional(),
          }),
        },
      },
      async (request, reply) => {
        const { scope, credential, user } = app.principal(request);
        const count = perUser.get(user.id) ?? 0;
        if (count >= MAX_STREAMS_PER_USER)
          throw new ConnectorError("RATE_LIMITED", `${user.name} has ${count} streams of changes open already.`, {
            fix: "Close other tabs or programs that follow changes.",
          });
        // Counted before anything is awaited: a hundred at once are as many as a hundred in turn.
        perUser.set(user.id, count + 1);
        const last = request.headers["last-event-id"];
        const from = last === undefined ? request.query.after : Number(last);

        let sentThrough = -1;
        let held: ChangeRow[] = [];
        let live = false;
        let heartbeat: Timer | null = null;
        let recheck: Timer | null = null;
        const raw = reply.raw;
        const send = (event: string, n: number, data: unknown): void => {
          raw.write(`event: ${event}\nid: ${n}\ndata: ${JSON.stringify(data)}\n\n`);
        };
        const sendChanges = (changes: readonly ChangeRow[]): void => {
          for (const change of changes) {
            if (change.n <= sentThrough) continue;
            sentThrough = change.n;
            send("change", change.n, change);
          }
          if (raw.writableLength > MAX_PENDING_BYTES) raw.destroy();
        };
        // Subscribed before the replay is read: nothing falls between the two.
        const unsubscribe = store.onChange((workspace, changes) => {
          if (workspace !== scope.workspace) return;
          if (live) return sendChanges(changes);
          held.push(...changes);
          if (held.length > MAX_HELD) raw.destroy();
        });
        const end = (): void => {
          finish();
          raw.end();
          // A reader that does not read does not get to keep the socket either.
          clock.after(CLOSE_MS, () => raw.destroy());
        };
        const finish = (): void => {
          if (!streams.delete(end)) return;
          unsubscribe();
          held = [];
          heartbeat?.cancel();
          recheck?.cancel();
          const left = (perUser.get(user.id) ?? 1) - 1;
          if (left > 0) perUser.set(user.id, left);
          else perUser.delete(user.id);
        };
        streams.add(end);
        // From the start: who goes away while the replay is read is gone as well. Also follows the answer of a failure.
        raw.once("close", finish);
        raw.once("error", finish);
        if (raw.destroyed) finish();
        const first = await store.changesAfter(scope.workspace, from ?? Number.MAX_SAFE_INTEGER, REPLAY_PAGE);
        if (!streams.has(end)) return void reply.hijack();

        for (const [name, value] of Object.entries(reply.getHeaders()))
          if (value !== undefined) raw.setHeader(name, value);
        reply.hijack();
        raw.writeHead(200, {
          "content-type": "text/event-stream; charset=utf-8",
          "cache-control": "no-store",
          "x-accel-buffering": "no",
          "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
          "x-content-type-options": "nosniff",
        });
        raw.write("retry: 1000\n\n");

        const armHeartbeat = (): void => {
          heartbeat = clock.after(HEARTBEAT_MS, () => {
            raw.write(": beat\n\n");
            if (raw.writableLength > MAX_PENDING_BYTES) return void raw.destroy();
            armHeartbeat();
          });
        };
        const armRecheck = (): void => {
          recheck = clock.after(RECHECK_MS, () => {
            authenticator.stillGood(credential).then(
              (good) => {
                if (!streams.has(end)) return;
                if (good) armRecheck();
                else end();
              },
              () => end(),
            );
          });
        };
        armHeartbeat();
        armRecheck();

        try {
          const gone = from !== undefined && (from > first.newest || from < first.oldest - 1);
          sentThrough = from === undefined || gone ? first.newest : from;
          send(gone ? "reset" : "ready", sentThrough, { n: sentThrough });
          if (!gone && from !== undefined) {
            let page = first;
            sendChanges(page.items);
            while (page.items.length === REPLAY_PAGE && streams.has(end)) {
              if (raw.writableNeedDrain)
                await new Promise<void>((resolve) => void raw.once("drain", resolve).once("close", resolve));
              page = await store.changesAfter(scope.workspace, sentThrough, REPLAY_PAGE);
              sendChanges(page.items);
            }
          }
          sendChanges(held);
          live = true;
          held = [];
        } catch (error) {
          // The head is out: nothing can be said any more. The reader comes back and names where it stopped.
          request.log.warn({ err: error }, "a stream of changes broke off");
          raw.destroy();
        }
      },
    );
  };
  return {
    routes,
    closeAll() {
      for (const end of [...streams]) end();
    },
    get open() {
      return streams.size;
    },
  };
}
