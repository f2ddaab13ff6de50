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
          headers: z.object({ "last-event-id": z.string().regex(/^[0-9]{1,16}$/, "a number that a `change` event had").optional() }),
        },
      },
      async (request, reply) => {
        const { scope, credential, user } = app.principal(request);
        const count = perUser.get(user.id) ?? 0;
        if (count >= MAX_STREAMS_PER_USER) throw new ConnectorError("RATE_LIMITED", `${user.name} has ${count} streams of changes open already.`, { fix: "Close other tabs or programs that follow changes." });
        const last = request.headers["last-event-id"];
        const from = last === undefined ? request.query.after : Number(last);

        // Subscribed before the replay is read: nothing falls between the two.
        let sentThrough = -1;
        const held: ChangeRow[] = [];
        let live = false;
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
        const unsubscribe = store.onChange((workspace, changes) => {
          if (workspace !== scope.workspace) return;
          if (live) sendChanges(changes);
          else held.push(...changes);
        });
        let first: Awaited<ReturnType<Store["changesAfter"]>>;
        try {
          first = await store.changesAfter(scope.workspace, from ?? Number.MAX_SAFE_INTEGER, REPLAY_PAGE);
        } catch (error) {
          unsubscribe();
          throw error;
        }

        let heartbeat: Timer | null = null;
        let recheck: Timer | null = null;
        const finish = (): void => {
          if (!streams.delete(end)) return;
          unsubscribe();
          heartbeat?.cancel();
          recheck?.cancel();
          const left = (perUser.get(user.id) ?? 1) - 1;
          if (left > 0) perUser.set(user.id, left);
          else perUser.delete(user.id);
        };
        const end = (): void => {
          finish();
          raw.end();
        };
        streams.add(end);
        perUser.set(user.id, count + 1);
        raw.once("close", finish);
        raw.once("error", finish);

        for (const [name, value] of Object.entries(reply.getHeaders())) if (value !== undefined) raw.setHeader(name, value);
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

        const gone = from !== undefined && (from > first.newest || from < first.oldest - 1);
        sentThrough = from === undefined || gone ? first.newest : from;
        send(gone ? "reset" : "ready", sentThrough, { n: sentThrough });
        if (!gone && from !== undefined) {
          let page = first;
          sendChanges(page.items);
          while (page.items.length === REPLAY_PAGE && streams.has(end)) {
            if (raw.writableNeedDrain) await new Promise<void>((resolve) => void raw.once("drain", resolve).once("close", resolve));
            page = await store.changesAfter(scope.workspace, sentThrough, REPLAY_PAGE);
            sendChanges(page.items);
          }
        }
        sendChanges(held);
        live = true;
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
