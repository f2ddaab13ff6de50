// What the gateway asks, answered by the store.
import { createHash } from "node:crypto";
import { ConnectorError, type Clock, type ReplicaId } from "@sallyport/protocol";
import type { LinkDirectory, LinkReplica } from "../link/index.ts";
import type { ReplicaRow, Store } from "../store/index.ts";

const REFUSALS = {
  ENROLMENT_UNKNOWN: "This enrolment secret is not of this control plane.",
  ENROLMENT_USED: "This enrolment secret was used already; each lets one agent join, once.",
  ENROLMENT_EXPIRED: "This enrolment secret is older than an hour.",
  ENROLMENT_REVOKED: "This enrolment secret was withdrawn.",
} as const;

const toLink = (row: ReplicaRow): LinkReplica => ({
  workspace: row.workspace,
  pool: row.pool,
  id: row.id,
  publicKey: row.publicKey,
  nextKey: row.nextKey,
  names: { replica: row.name, pool: row.poolName, workspace: row.workspaceName },
  revoked: row.revokedAt !== null,
});

const fingerprintOf = (publicKey: string): string =>
  createHash("sha256").update(Buffer.from(publicKey, "base64url")).digest("base64url");

/**
 * `process`: names this cloud process in the presence rows. `ignored`: counts what agents say of deployments not theirs.
 * `presence`: told when a session of a replica began or ended.
 */
export function linkDirectory(
  store: Store,
  clock: Clock,
  process: string,
  ignored: (count: number) => void = () => {},
  presence: (replica: ReplicaId) => void = () => {},
): LinkDirectory {
  return {
    async findReplica(id) {
      const row = await store.replicaByKey(id);
      return row === null ? null : toLink(row);
    },
    keyOffered: (replica, publicKey) => store.offerKey(replica, publicKey),
    keyUsed: (replica, publicKey) => store.takeKey(replica, publicKey, fingerprintOf(publicKey)),
    async redeemEnrollment(request) {
      const fingerprint = fingerprintOf(request.publicKey);
      const answer = await store.redeemEnrollment({ ...request, fingerprint, now: clock.now() });
      if ("refused" in answer)
        throw new ConnectorError(answer.refused, REFUSALS[answer.refused], {
          fix: "Make a new one on the page Add agent.",
        });
      return toLink(answer.replica);
    },
    async opened(session) {
      const now = clock.now();
      const { epoch, journalChanged } = await store.openSession(session.replica, {
        id: session.id,
        process,
        instance: session.instance,
        journal: session.journal,
        remoteAddress: session.remoteAddress,
        version: session.version,
        now,
        generations: session.generations,
      });
      presence(session.replica);
      if (journalChanged) {
        await store.addAlarm(session.workspace, session.replica, {
          at: now,
          code: "JOURNAL_CHANGED",
          message:
            "The agent came back with another journal: its state directory was emptied or replaced. What it had accepted may be forgotten.",
        });
      }
      return { epoch };
    },
    async closed(session, { code, message }) {
      await store.closeSession(session.replica, session.id, clock.now(), { code, message });
      presence(session.replica);
    },
    refused: (workspace, replica, { code, message }, remoteAddress) =>
      store.refuseConnection(workspace, replica, { at: clock.now(), code, message, remoteAddress }),
    async seen(updates) {
      const answer = await store.seen(updates.map((update) => ({ ...update, at: clock.now() })));
      if (answer.ignored > 0) ignored(answer.ignored);
    },
    alarm: (workspace, replica, error) =>
      store.addAlarm(workspace, replica, { at: clock.now(), code: error.code, message: error.message }),
  };
}
