// The store's door: named operations over plain data. Each is re-runnable and its promise resolves after COMMIT. No
// transaction, row object or SQL leaves it. `Scope` comes first and comes from the principal, never from a body.
import type {
  AgentStatus,
  Body,
  CommandId,
  DeploymentId,
  DeploymentSpec,
  DeploymentStatus,
  EnrollmentId,
  ErrorBody,
  Pipeline,
  PoolId,
  ProducedArtifact,
  ReplicaId,
  Report,
  Rollup,
  RunId,
  SessionId,
  StepState,
  WorkspaceId,
  ParamValue,
} from "@sallyport/protocol";

/** Who acts, where. */
export interface Scope {
  workspace: WorkspaceId;
  actor: { id: string; name: string; via: "session" | "token" | "system" };
  /** `traceparent` of the request that asks; absent = nobody's request. Kept with the commands that it makes. */
  trace?: string;
}

export type CommandState =
  | "queued"
  | "accepted"
  | "running"
  | "succeeded"
  | "failed"
  | "cancelled"
  | "expired"
  | "superseded"
  | "refused"
  | "lost";
export const TERMINAL_STATES: readonly CommandState[] = [
  "succeeded",
  "failed",
  "cancelled",
  "expired",
  "superseded",
  "refused",
  "lost",
];

export interface Page<T> {
  items: T[];
  nextCursor: string | null;
}
export interface PageQuery {
  limit: number;
  cursor?: string | undefined;
}

export interface UserRow {
  workspace: WorkspaceId;
  workspaceName: string;
  id: string;
  name: string;
  role: "admin";
  passwordHash: string | null;
}
/** A credential that was found good, and whose it is. */
export interface CredentialRow {
  user: UserRow;
  /** Of an API token; null for a web session. */
  credential: { id: string; label: string } | null;
  /** Last use that was written down, at most a minute behind; 0 = none. */
  usedAt: number;
  /** Of an API token. */
  expiresAt?: number;
}
export interface TokenRow {
  id: string;
  label: string;
  hint: string;
  createdAt: number;
  expiresAt: number;
  lastUsedAt: number | null;
  revokedAt: number | null;
}
export interface PoolRow {
  id: PoolId;
  name: string;
  createdAt: number;
  /** Most runs of it at a time; null = no limit. */
  maxRuns: number | null;
}
export interface ReplicaRow {
  workspace: WorkspaceId;
  workspaceName: string;
  id: ReplicaId;
  name: string;
  pool: PoolId;
  poolName: string;
  /** Raw Ed25519 public key, base64url. */
  publicKey: string;
  /** Offered and not used yet. */
  nextKey: string | null;
  fingerprint: string;
  createdAt: number;
  revokedAt: number | null;
  deletedAt: number | null;
  /** Presence: the newest session, live or not. */
  session: SessionId | null;
  epoch: number;
  process: string | null;
  connectedAt: number | null;
  disconnectedAt: number | null;
  lastSeenAt: number | null;
  remoteAddress: string | null;
  journal: string | null;
  status: AgentStatus | null;
  statusAt: number | null;
  alarms: { at: number; code: string; message: string }[];
}
/** A cloud process that shares the database. */
export interface ProcessRow {
  id: string;
  peerUrl: string;
  /** Fingerprint of its identity key. */
  identity: string;
  /** Counts on while it lives. */
  beat: number;
  startedAt: number;
  /** It is stopping: its agents go to the others. */
  leaving: boolean;
}
/** Where an agent replica's newest session is, or was. */
export interface PresenceRow {
  workspace: WorkspaceId;
  replica: ReplicaId;
  pool: PoolId;
  session: SessionId | null;
  epoch: number;
  process: string | null;
  instance: string | null;
  journal: string | null;
  remoteAddress: string | null;
  live: boolean;
  lastSeenAt: number | null;
  statusAt: number | null;
  revoked: boolean;
  deleted: boolean;
  status: AgentStatus | null;
}
/** One session of a replica, or its being refused. */
export interface ConnectionRow {
  no: number;
  /** Null = refused at the handshake. */
  session: SessionId | null;
  at: number;
  /** Null while it lives; of a refusal the last time it was repeated. */
  endedAt: number | null;
  /** Why it ended or was refused; null while it lives. */
  code: string | null;
  message: string | null;
  remoteAddress: string | null;
  version: string | null;
  /** How often in a row it was refused so; 1 for a session. */
  times: number;
}
export interface EnrollmentRow {
  workspace: WorkspaceId;
  id: EnrollmentId;
  pool: PoolId;
  poolName: string;
  name: string | null;
  createdAt: number;
  expiresAt: number;
  usedAt: number | null;
  withdrawnAt: number | null;
  replica: ReplicaId | null;
  refusals: { at: number; code: string; message: string; remoteAddress: string | null }[];
}
export interface CommandRow {
  workspace: WorkspaceId;
  id: CommandId;
  pool: PoolId;
  poolName: string;
  kind: string;
  resource: string;
  state: CommandState;
  /** Exact text of the intent and the opaque body: what is offered. */
  intent: string;
  body: Body;
  actor: Scope["actor"];
  replica: ReplicaId | null;
  replicaName: string | null;
  run: RunId | null;
  /** Of a run: its pipeline's name, and how many of that name may run in the pool at a time (null = no limit). */
  pipeline: string | null;
  concurrency: number | null;
  /** Higher goes first, between resources. */
  priority: number;
  /** Labels that an agent must have to take it. */
  requires: Readonly<Record<string, string>>;
  /** `traceparent` of the request that made it; null or absent = none. */
  trace?: string | null;
  createdAt: number;
  notBefore: number;
  expires: number;
  acceptedAt: number | null;
  startedAt: number | null;
  endedAt: number | null;
  offers: number;
  /** The replica of the newest offer that was not refused; it may have journaled the command even if its answer was lost. Absent or null: none can have it. */
  offeredTo?: ReplicaId | null;
  error: ErrorBody | null;
  result: unknown;
}
export interface AttemptRow {
  step: string;
  attempt: number;
  state: StepState;
  startedAt: number | null;
  endedAt: number | null;
  exitCode: number | null;
  error: ErrorBody | null;
  outputs: ProducedArtifact[];
  logSeq: number;
  adopted: boolean;
  /** Failed, and the next attempt begins then. */
  retryAt: number | null;
}
export interface RunRow {
  workspace: WorkspaceId;
  id: RunId;
  command: CommandId;
  pool: PoolId;
  pipeline: string;
  spec: Pipeline;
  params: Record<string, ParamValue>;
  /** The run that it repeats. */
  rerunOf?: RunId | null;
  createdAt: number;
}
/** A run that has one of the pool's slots, or may have: accepted, running, or offered and not refused. */
export interface RunHolder {
  command: CommandId;
  run: RunId;
  pipeline: string;
  state: CommandState;
  replica: ReplicaId | null;
  replicaName: string | null;
  since: number;
}
export interface PoolQueue {
  maxRuns: number | null;
  /** How many runs have a slot, in all and by pipeline. */
  held: number;
  heldOf: Record<string, number>;
  /** The oldest of them. */
  holders: RunHolder[];
  /** Of those queued commands that were asked for. */
  items: {
    id: CommandId;
    /** 1 = next, among `of` queued runs (or among the queued commands that are no runs). */
    position: number;
    of: number;
    /** The queued command of the same resource that comes first; null = itself. */
    behind: CommandId | null;
    /** It is due, first of its resource and within the limits. */
    mayGo: boolean;
  }[];
}
/** One thing that happened to a command. `type`: `offered` or one of the states; `applied` false = kept beside an end. */
export interface HistoryRow {
  at: number;
  type: string;
  agent: { id: ReplicaId; name: string } | null;
  applied: boolean;
  detail: Record<string, unknown> | null;
}
/** Wanted and observed. What is observed has an age: `observedAt`. */
export interface DeploymentRow {
  workspace: WorkspaceId;
  id: DeploymentId;
  pool: PoolId;
  poolName: string;
  name: string;
  /** The agent replica that holds it; null until one took it. Stays when that is revoked, until another takes it. */
  replica: ReplicaId | null;
  replicaName: string | null;
  /** The owner is revoked or deleted: the next apply goes to any replica of the pool. */
  ownerGone: boolean;
  generation: number;
  revision: number;
  /** False after a restore: the agent has revisions that this database never saw. The next apply makes a new one. */
  revisionKnown: boolean;
  spec: DeploymentSpec;
  /** Newest apply or remove. */
  command: CommandId;
  actor: Scope["actor"];
  createdAt: number;
  updatedAt: number;
  removing: boolean;
  removedAt: number | null;
  /** Null with an `observedAt`: the agent said that it does not have it (any more). Null without: nothing heard yet. */
  observed: DeploymentStatus | null;
  observedAt: number | null;
}
export interface RevisionRow {
  revision: number;
  spec: DeploymentSpec;
  /** The earlier revision that it repeats. */
  from: number | null;
  actor: Scope["actor"];
  createdAt: number;
}
/** A run that a replica holds, or may hold, and the engine that it runs on. */
export interface HeldWork {
  command: CommandRow;
  holder: ReplicaId;
  engine: string;
}
/** The newest takeover of a command. */
export interface Takeover {
  from: ReplicaId;
  fromName: string;
  to: ReplicaId;
  reason: string;
  at: number;
  /** When the new replica had journaled it; null = it is being offered. */
  acceptedAt: number | null;
}
/** What a replica is told about commands that were taken over: see `reportAckSchema`. */
export interface Handoffs {
  released: CommandId[];
  fenced: CommandId[];
  settled: CommandId[];
}
export interface CommittedReports {
  committedThrough: number;
  /** Absent = none, in both. */
  released?: CommandId[];
  fenced?: CommandId[];
}
/** What `createCommand` takes. */
export interface NewCommand {
  id: CommandId;
  pool: PoolId;
  kind: string;
  resource: string;
  intent: string;
  body: Body;
  notBefore: number;
  expires: number;
  createdAt: number;
  /** Absent = 0. */
  priority?: number;
  /** Absent = none. */
  requires?: Readonly<Record<string, string>>;
  run?: Omit<RunRow, "workspace" | "command">;
}
/** A change of a deployment, computed from the row that was read; the transaction verifies that it still is. */
export interface DeploymentCommit {
  deployment: { id: DeploymentId; pool: PoolId; name: string; spec: DeploymentSpec };
  /** Generation that it was computed from; 0 = there must be none of that id. */
  expectedGeneration: number;
  /** What the command's input says. The generation is `expectedGeneration` + 1. */
  revision: number;
  /** The earlier revision whose content the spec repeats; absent = looked up. */
  from?: number;
  removing?: boolean;
  command: NewCommand;
}
export interface ChangeRow {
  n: number;
  entity: "agent" | "pool" | "enrollment" | "command" | "run" | "token" | "deployment";
  id: string;
  /** Rises with each change of the thing; equal to `n` now. */
  version: number;
}
/** A key, the request that it stands for, and what a repetition is answered. */
export interface IdempotencyEntry {
  key: string;
  method: string;
  route: string;
  requestDigest: string;
  answer: IdempotentAnswer;
}
/** What an earlier request with the same key answered. */
export interface IdempotentAnswer {
  status: number;
  body: unknown;
}

/** What `collect` keeps; absent = its default. */
export interface CollectLimits {
  /** Ended commands, removed deployments, tokens and enrolments that are over: 30 days. */
  keepMs?: number;
  /** Minutes of deployments: 2 days, by the control plane's clock. */
  keepRollupsMs?: number;
  /** Of each deployment, the newest: 1,000. */
  revisions?: number;
  /** Of each kind in one transaction: 200. */
  batch?: number;
}
export interface Collected {
  commands: number;
  /** Of all tables together. */
  rows: number;
  /** A batch was full: ask again. */
  more: boolean;
}

export interface Store {
  // set-up and identity of this cloud
  /** Made at first start, new after a restore. */
  incarnation(): Promise<string>;
  /** Makes organisation, workspace and admin when there are none; answers the admin. */
  ensureAdmin(name: string, workspaceName: string): Promise<UserRow>;
  /** A further workspace of the first organisation, with its admin. CONFLICT when the admin's name is taken. */
  makeWorkspace(workspaceName: string, adminName: string, now: number): Promise<UserRow>;
  /** Public halves of the key rings; known kids are left alone. */
  putCloudKeys(keys: { kid: string; purpose: string; publicKey: string; createdAt: number }[]): Promise<void>;

  // sign-in
  addSignIn(user: string, secretHash: string, expiresAt: number): Promise<void>;
  /** Once: the second call answers null. */
  redeemSignIn(secretHash: string, now: number): Promise<UserRow | null>;
  /** Whether this person ever got in: used a sign-in link or has a password. */
  hasSignedIn(user: string): Promise<boolean>;
  userByName(name: string): Promise<UserRow | null>;
  /** Ends the user's web sessions too. */
  setPassword(scope: Scope, user: string, passwordHash: string): Promise<void>;
  addWebSession(user: UserRow, sessionHash: string, now: number, expiresAt: number): Promise<void>;
  /** Extends the idle time. Null when unknown, idle too long or past its end. */
  useWebSession(sessionHash: string, now: number, idleMs: number): Promise<CredentialRow | null>;
  /** As `useWebSession` and `useToken`, without counting as a use: for streams that check whether they may go on. */
  peekWebSession(sessionHash: string, now: number, idleMs: number): Promise<CredentialRow | null>;
  peekToken(hash: string, now: number): Promise<CredentialRow | null>;
  removeWebSession(sessionHash: string): Promise<void>;
  /** `idempotency`: its answer must not hold the token itself. */
  addToken(
    scope: Scope,
    token: {
      id: string;
      user: string;
      label: string;
      hint: string;
      hash: string;
      createdAt: number;
      expiresAt: number;
    },
    idempotency?: IdempotencyEntry,
  ): Promise<TokenRow>;
  tokens(scope: Scope): Promise<TokenRow[]>;
  revokeToken(scope: Scope, id: string, now: number): Promise<boolean>;
  useToken(hash: string, now: number): Promise<CredentialRow | null>;

  // pools, enrolments, replicas
  ensurePool(scope: Scope, name: string, now: number): Promise<PoolRow>;
  /** Null: there is no such pool. */
  limitPool(scope: Scope, pool: PoolId, limits: { maxRuns: number | null }): Promise<PoolRow | null>;
  pools(scope: Scope): Promise<PoolRow[]>;
  poolByName(scope: Scope, name: string): Promise<PoolRow | null>;
  /** `idempotency`: its answer must not hold the secret. */
  addEnrollment(
    scope: Scope,
    enrollment: {
      id: EnrollmentId;
      pool: PoolId;
      name: string | null;
      secretHash: string;
      createdAt: number;
      expiresAt: number;
    },
    idempotency?: IdempotencyEntry,
  ): Promise<EnrollmentRow>;
  enrollments(scope: Scope, query: PageQuery): Promise<Page<EnrollmentRow>>;
  enrollment(scope: Scope, id: EnrollmentId): Promise<EnrollmentRow | null>;
  withdrawEnrollment(scope: Scope, id: EnrollmentId, now: number): Promise<boolean>;
  /**
   * Single use: marks it used and adds the replica in one transaction, or answers the code and records the refusal. The same
   * secret with the same public key again is the same join (its READY was lost on the way): it answers the same replica, also
   * past the hour, while that is not revoked or deleted. With another key it is refused ENROLMENT_USED.
   */
  redeemEnrollment(input: {
    id: string;
    secretHash: string;
    publicKey: string;
    fingerprint: string;
    nameHint: string | null;
    remoteAddress: string | null;
    now: number;
  }): Promise<
    | { replica: ReplicaRow }
    | { refused: "ENROLMENT_UNKNOWN" | "ENROLMENT_USED" | "ENROLMENT_EXPIRED" | "ENROLMENT_REVOKED" }
  >;
  replicas(scope: Scope): Promise<ReplicaRow[]>;
  replica(scope: Scope, id: ReplicaId): Promise<ReplicaRow | null>;
  /** For the handshake, where the key is the only credential. */
  replicaByKey(id: string): Promise<ReplicaRow | null>;
  renameReplica(scope: Scope, id: ReplicaId, name: string): Promise<ReplicaRow | null>;
  /** Its next key; takes the place of an earlier offer. */
  offerKey(id: ReplicaId, publicKey: string): Promise<void>;
  /** The offered key was used: it is the key from now on. Nothing when it is that already, or another was offered since. */
  takeKey(id: ReplicaId, publicKey: string, fingerprint: string): Promise<void>;
  revokeReplica(scope: Scope, id: ReplicaId, now: number): Promise<ReplicaRow | null>;
  /** Only when revoked or not connected; its commands keep its name. */
  deleteReplica(scope: Scope, id: ReplicaId, now: number): Promise<boolean>;

  // presence
  /** Newest epoch wins; answers the new one. */
  openSession(
    replica: ReplicaId,
    session: {
      id: SessionId;
      process: string;
      instance: string;
      journal: string;
      remoteAddress: string | null;
      /** Of the agent's program. Absent = not said. */
      version?: string;
      now: number;
      /** Of the deployments that it holds, from hello: a restored database counts on from there. Absent = not said. */
      generations?: Readonly<Record<string, number>>;
    },
  ): Promise<{ epoch: number; journalChanged: boolean }>;
  /** `reason`: for the list of its connections. */
  closeSession(
    replica: ReplicaId,
    session: SessionId,
    now: number,
    reason?: { code: string; message: string },
  ): Promise<void>;
  /** It proved who it is and was refused all the same. The same refusal again counts up. */
  refuseConnection(
    workspace: WorkspaceId,
    replica: ReplicaId,
    refusal: { at: number; code: string; message: string; remoteAddress: string | null },
  ): Promise<void>;
  /** Newest first; the newest 200 are kept. Null: no such replica. */
  connections(scope: Scope, replica: ReplicaId, query: PageQuery): Promise<Page<ConnectionRow> | null>;
  /** At start: sessions that a process which is gone left open are over. `process` is the one that lives. */
  releaseSessions(process: string, now: number): Promise<number>;

  // several processes
  /** Refused (CONFIG_INVALID) when the database belongs to other identity keys than these. */
  checkIdentity(kids: string[]): Promise<void>;
  /** The same, and listed from now on. */
  joinProcess(process: { id: string; peerUrl: string; identity: string; kids: string[]; now: number }): Promise<void>;
  /** False: it is not listed any more. */
  beatProcess(id: string): Promise<boolean>;
  /** The others are to expect its agents. */
  announceLeaving(id: string): Promise<void>;
  /** `beat`: only while it stands there; null = whatever it is. False: nothing was removed. */
  leaveProcess(id: string, beat: number | null): Promise<boolean>;
  processes(): Promise<ProcessRow[]>;
  /** Sessions that a process left open are over. Answers how many. */
  releaseProcess(process: string, now: number): Promise<number>;
  /** A session that was released by mistake goes on, unless there is a newer one. */
  holdSession(replica: ReplicaId, session: SessionId): Promise<void>;
  /** All that are connected, `status` left out (null). */
  presence(): Promise<PresenceRow[]>;
  /** Of these replicas, connected or not. */
  presenceOf(replicas: ReplicaId[]): Promise<PresenceRow[]>;
  /** Number of the newest change of each workspace. */
  changeNumbers(): Promise<{ workspace: WorkspaceId; n: number }[]>;

  /**
   * A change is numbered only when what the agent says of itself changed, not for its host's figures. What it says of its
   * deployments goes to those that it owns; `ignored` counts what it said of others, or of some that nobody asked for.
   */
  seen(
    updates: {
      workspace: WorkspaceId;
      replica: ReplicaId;
      session: SessionId;
      at: number;
      status: AgentStatus | null;
    }[],
  ): Promise<{ ignored: number }>;
  addAlarm(
    workspace: WorkspaceId,
    replica: ReplicaId,
    alarm: { at: number; code: string; message: string },
  ): Promise<void>;

  // commands
  /** Command, its run if it has one, event and change in one transaction; with an idempotency key also the answer. */
  createCommand(
    scope: Scope,
    command: NewCommand,
    idempotency?: IdempotencyEntry,
  ): Promise<{ command: CommandRow; replayed: IdempotentAnswer | null }>;
  /** Looks up a key before the work. Throws IDEMPOTENCY_MISMATCH for another request digest. */
  idempotent(
    scope: Scope,
    key: { key: string; method: string; route: string; requestDigest: string },
    now: number,
  ): Promise<IdempotentAnswer | null>;
  command(scope: Scope, id: CommandId): Promise<CommandRow | null>;
  commands(
    scope: Scope,
    query: PageQuery & { state?: CommandState; kind?: string; pool?: PoolId; run?: RunId },
  ): Promise<Page<CommandRow>>;
  /**
   * What may be offered now: due, not past its expiry (unless an agent may have it already), within the limits of pool and
   * pipeline. Of one resource only the first to be committed; between resources by priority, then by order of commit.
   */
  offerable(workspace: WorkspaceId, pool: PoolId, now: number, limit: number): Promise<CommandRow[]>;
  /** As `offerable`, and how many queued ones whose time has come there are `others` than these. */
  offersDue(
    workspace: WorkspaceId,
    pool: PoolId,
    now: number,
    limit: number,
  ): Promise<{ rows: CommandRow[]; others: number }>;
  /** Where those queued commands stand, and who has the pool's slots. */
  queue(workspace: WorkspaceId, pool: PoolId, ids: CommandId[], now: number): Promise<PoolQueue>;
  /** What happened to it, oldest first. */
  history(scope: Scope, command: CommandId): Promise<HistoryRow[]>;
  /**
   * The next dispatch sequence for a replica: at least `floor` + 1, rising for ever. Counts the offer. Null = it is not
   * queued any more, or a limit holds it back since it was looked up: offer it to nobody. `fenced`: also null when another
   * replica may have it, by an offer that this process need not know of.
   */
  nextDispatch(
    workspace: WorkspaceId,
    command: CommandId,
    replica: ReplicaId,
    floor: number,
    now: number,
    fenced?: boolean,
  ): Promise<{ sequence: number; attempt: number } | null>;
  /** `count` numbers for offers of commands that are not stored (interactive ones); answers the first. */
  reserveDispatches(workspace: WorkspaceId, replica: ReplicaId, floor: number, count: number): Promise<number>;
  /**
   * The agent has journaled it. No change when that was known. Answers the state that holds: a command that ended while
   * the offer was on its way (cancelled, expired) stays ended, and the agent must be told to stop it.
   */
  markAccepted(
    workspace: WorkspaceId,
    command: CommandId,
    replica: ReplicaId,
    now: number,
  ): Promise<CommandState | null>;
  markRefused(
    workspace: WorkspaceId,
    command: CommandId,
    replica: ReplicaId,
    error: ErrorBody,
    now: number,
  ): Promise<void>;
  /**
   * The replica answered this offer before it journaled anything. Answers the replica that may have the command all the
   * same, from another offer; null = none can.
   */
  markNotTaken(
    workspace: WorkspaceId,
    command: CommandId,
    offer: { attempt: number; replica: ReplicaId; code: string },
    now: number,
  ): Promise<ReplicaId | null>;
  /** A queued command that nobody accepted. False when it was not queued any more. */
  /** `untouched`: also false when an offer of it was not refused, so that an agent may have it. */
  cancelQueued(scope: Scope, command: CommandId, now: number, untouched?: boolean): Promise<boolean>;
  /**
   * An operator's word that the replica which has a command (or may have it: offered and not refused) will never answer.
   * False when it has ended, or nobody can have it, or another replica than `word.replica` has it.
   */
  declareLost(
    scope: Scope,
    command: CommandId,
    now: number,
    word?: { reason: string; replica: ReplicaId | null },
  ): Promise<boolean>;
  /** Ends those past their expiry that no agent can have. */
  expireQueued(now: number): Promise<number>;
  /**
   * Applies the reports that are new (by journal and sequence) in one transaction: states never flip back, step rows,
   * changes. Only for commands of that replica. Answers the highest sequence committed without a hole; what lies behind
   * a hole is not applied, the agent repeats it. `lowestHeld`: the agent no longer has reports below this number, so a
   * cloud that was restored from a backup need not wait for them.
   */
  commitReports(
    workspace: WorkspaceId,
    replica: ReplicaId,
    journal: string,
    reports: Report[],
    now: number,
    lowestHeld?: number,
  ): Promise<CommittedReports>;

  // takeover
  /** Runs of a pool that others than these replicas hold, or may hold because an offer was not answered; oldest first. */
  heldWork(workspace: WorkspaceId, pool: PoolId, live: ReplicaId[], limit: number): Promise<HeldWork[]>;
  /** Accepted or running, moved to a replica that has not accepted it yet. */
  unacceptedTakeovers(workspace: WorkspaceId, pool: PoolId, limit: number): Promise<CommandRow[]>;
  /**
   * Moves it from one replica to another with an event that says so. False when it has ended, or `from` has it no more.
   * `holds`: false when `from` said that it has nothing of it. From then on no report of `from` is applied.
   */
  takeOver(
    workspace: WorkspaceId,
    command: CommandId,
    move: { from: ReplicaId; to: ReplicaId; reason: string; holds: boolean },
    now: number,
  ): Promise<boolean>;
  handoffs(workspace: WorkspaceId, replica: ReplicaId, limit: number): Promise<Handoffs>;
  /** The replica was told that every former holder has let go of these. */
  markSettled(workspace: WorkspaceId, commands: CommandId[], now: number): Promise<void>;
  /** By command; those that were never taken over are not in it. */
  lastTakeovers(workspace: WorkspaceId, commands: CommandId[]): Promise<Record<string, Takeover>>;

  // runs
  run(scope: Scope, id: RunId): Promise<{ run: RunRow; command: CommandRow; attempts: AttemptRow[] } | null>;
  runs(
    scope: Scope,
    query: PageQuery & { state?: CommandState; pipeline?: string },
  ): Promise<Page<{ run: RunRow; command: CommandRow; attempts: AttemptRow[] }>>;

  // deployments
  /**
   * One generation more, in one transaction with its command: PRECONDITION_FAILED when the row is at another generation
   * than expected, CONFLICT when the name is taken in the pool. Older queued commands about it end superseded. A removal of
   * what no agent can have is done at once and makes no command: `command` is then the newest earlier one.
   */
  commitDeployment(
    scope: Scope,
    change: DeploymentCommit,
    idempotency?: IdempotencyEntry,
  ): Promise<{ command: CommandRow; replayed: IdempotentAnswer | null }>;
  deployment(scope: Scope, id: DeploymentId): Promise<{ deployment: DeploymentRow; command: CommandRow } | null>;
  /** Newest first; removed ones only when asked for. */
  deployments(
    scope: Scope,
    query: PageQuery & { pool?: PoolId; name?: string; removed?: boolean },
  ): Promise<Page<{ deployment: DeploymentRow; command: CommandRow }>>;
  /** Newest first. */
  deploymentRevisions(
    scope: Scope,
    id: DeploymentId,
    query: { limit: number; before?: number },
  ): Promise<RevisionRow[]>;
  deploymentRevision(scope: Scope, id: DeploymentId, revision: number): Promise<RevisionRow | null>;
  /** Minutes after `since`, oldest first; those of one day are kept. */
  deploymentRollups(scope: Scope, id: DeploymentId, since: number): Promise<Rollup[]>;
  /** The replica that alone may be offered commands about it: its owner, or the one that may hold it. Null = any. */
  deploymentHolder(workspace: WorkspaceId, id: DeploymentId, besides: CommandId): Promise<ReplicaId | null>;

  // retention
  /** Removes a batch of what nobody needs any more: ended commands, keys past their day, old sessions and minutes. */
  collect(now: number, limits?: CollectLimits): Promise<Collected>;

  // changes
  changesAfter(
    workspace: WorkspaceId,
    n: number,
    limit: number,
  ): Promise<{ items: ChangeRow[]; oldest: number; newest: number }>;
  /** Called after the commit that made them, in order of n. Returns the unsubscription. */
  onChange(listener: (workspace: WorkspaceId, changes: ChangeRow[]) => void): () => void;

  close(): Promise<void>;
}
