// The schema's history: a static list, applied in order, each in one transaction, never edited once released.
// Plain SQL that SQLite and PostgreSQL both take. Every key and every foreign key begins with workspace_id, so that no
// row can point into another tenant; what lies above workspaces (organisations) or outside (cloud) has none.

export interface Migration {
  readonly id: number;
  readonly name: string;
  readonly statements: readonly string[];
}

export const MIGRATIONS: readonly Migration[] = [
  {
    id: 1,
    name: "first",
    statements: [
      `create table cloud (singleton bigint primary key, incarnation text not null, made_at bigint not null)`,
      `create table cloud_keys (kid text primary key, purpose text not null, public_key text not null, created_at bigint not null)`,
      `create table organisations (organisation_id text primary key, name text not null, created_at bigint not null)`,
      `create table workspaces (
        workspace_id text primary key, organisation_id text not null references organisations (organisation_id),
        name text not null, created_at bigint not null)`,

      `create table users (
        workspace_id text not null references workspaces (workspace_id), user_id text not null, name text not null,
        role text not null, password_hash text, created_at bigint not null,
        primary key (workspace_id, user_id))`,
      `create unique index users_by_name on users (name)`,
      `create unique index users_by_id on users (user_id)`,
      `create table signins (
        workspace_id text not null, secret_hash text not null, user_id text not null, expires_at bigint not null, redeemed_at bigint,
        primary key (workspace_id, secret_hash), foreign key (workspace_id, user_id) references users (workspace_id, user_id))`,
      `create unique index signins_by_secret on signins (secret_hash)`,
      `create table web_sessions (
        workspace_id text not null, session_hash text not null, user_id text not null, created_at bigint not null,
        used_at bigint not null, expires_at bigint not null,
        primary key (workspace_id, session_hash), foreign key (workspace_id, user_id) references users (workspace_id, user_id))`,
      `create unique index web_sessions_by_hash on web_sessions (session_hash)`,
      `create table api_tokens (
        workspace_id text not null, token_id text not null, user_id text not null, label text not null, hint text not null,
        token_hash text not null, created_at bigint not null, expires_at bigint not null, last_used_at bigint, revoked_at bigint,
        primary key (workspace_id, token_id), foreign key (workspace_id, user_id) references users (workspace_id, user_id))`,
      `create unique index api_tokens_by_hash on api_tokens (token_hash)`,

      `create table pools (
        workspace_id text not null references workspaces (workspace_id), pool_id text not null, name text not null, created_at bigint not null,
        primary key (workspace_id, pool_id))`,
      `create unique index pools_by_name on pools (workspace_id, name)`,
      `create table replicas (
        workspace_id text not null, replica_id text not null, pool_id text not null, name text not null,
        public_key text not null, fingerprint text not null, created_at bigint not null, revoked_at bigint, deleted_at bigint,
        session_id text, epoch bigint not null, process text, instance text, connected_at bigint, disconnected_at bigint,
        last_seen_at bigint, remote_address text, journal_id text, status text, status_at bigint,
        primary key (workspace_id, replica_id), foreign key (workspace_id, pool_id) references pools (workspace_id, pool_id))`,
      `create unique index replicas_by_id on replicas (replica_id)`,
      `create unique index replicas_by_name on replicas (workspace_id, name) where deleted_at is null`,
      `create index replicas_by_pool on replicas (workspace_id, pool_id)`,
      `create table alarms (
        workspace_id text not null, replica_id text not null, alarm_no bigint not null, at bigint not null, code text not null, message text not null,
        primary key (workspace_id, replica_id, alarm_no), foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id))`,
      `create table enrollments (
        workspace_id text not null, enrollment_id text not null, pool_id text not null, name text, secret_hash text not null,
        created_at bigint not null, expires_at bigint not null, used_at bigint, withdrawn_at bigint, replica_id text,
        primary key (workspace_id, enrollment_id),
        foreign key (workspace_id, pool_id) references pools (workspace_id, pool_id),
        foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id))`,
      `create unique index enrollments_by_id on enrollments (enrollment_id)`,
      `create index enrollments_by_time on enrollments (workspace_id, created_at, enrollment_id)`,
      `create table enrollment_refusals (
        workspace_id text not null, enrollment_id text not null, refusal_no bigint not null, at bigint not null,
        code text not null, message text not null, remote_address text,
        primary key (workspace_id, enrollment_id, refusal_no),
        foreign key (workspace_id, enrollment_id) references enrollments (workspace_id, enrollment_id))`,

      `create table commands (
        workspace_id text not null, command_id text not null, pool_id text not null, kind text not null, resource text not null,
        state text not null, intent text not null, body text not null, actor_id text not null, actor_name text not null, actor_via text not null,
        replica_id text, run_id text, created_at bigint not null, not_before bigint not null, expires_at bigint not null,
        accepted_at bigint, started_at bigint, ended_at bigint, offers bigint not null, error text, result text,
        primary key (workspace_id, command_id),
        foreign key (workspace_id, pool_id) references pools (workspace_id, pool_id),
        foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id))`,
      `create index commands_by_time on commands (workspace_id, created_at, command_id)`,
      `create index commands_queued on commands (workspace_id, pool_id, created_at, command_id) where state = 'queued'`,
      `create index commands_by_run on commands (workspace_id, run_id)`,
      `create table offers (
        workspace_id text not null, command_id text not null, attempt bigint not null, replica_id text not null, sequence bigint not null,
        primary key (workspace_id, command_id, attempt),
        foreign key (workspace_id, command_id) references commands (workspace_id, command_id))`,
      `create table command_events (
        workspace_id text not null, command_id text not null, event_no bigint not null, at bigint not null, type text not null,
        replica_id text, applied bigint not null, detail text,
        primary key (workspace_id, command_id, event_no),
        foreign key (workspace_id, command_id) references commands (workspace_id, command_id))`,
      `create table runs (
        workspace_id text not null, run_id text not null, command_id text not null, pool_id text not null, pipeline text not null,
        spec text not null, params text not null, created_at bigint not null,
        primary key (workspace_id, run_id),
        foreign key (workspace_id, command_id) references commands (workspace_id, command_id),
        foreign key (workspace_id, pool_id) references pools (workspace_id, pool_id))`,
      `create index runs_by_time on runs (workspace_id, created_at, run_id)`,
      `create unique index runs_by_command on runs (workspace_id, command_id)`,
      `create table attempts (
        workspace_id text not null, run_id text not null, step text not null, attempt bigint not null, state text not null,
        started_at bigint, ended_at bigint, exit_code bigint, error text, outputs text not null, log_seq bigint not null, adopted bigint not null,
        primary key (workspace_id, run_id, step, attempt), foreign key (workspace_id, run_id) references runs (workspace_id, run_id))`,
      `create table journals (
        workspace_id text not null, replica_id text not null, journal_id text not null, committed_through bigint not null,
        ignored bigint not null, first_seen_at bigint not null,
        primary key (workspace_id, replica_id, journal_id),
        foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id))`,
      `create table idempotency_keys (
        workspace_id text not null references workspaces (workspace_id), actor_id text not null, method text not null, route text not null, key text not null,
        request_digest text not null, status bigint not null, body text not null, command_id text, created_at bigint not null,
        primary key (workspace_id, actor_id, method, route, key),
        foreign key (workspace_id, command_id) references commands (workspace_id, command_id))`,
      `create index idempotency_keys_by_time on idempotency_keys (workspace_id, created_at)`,

      `create table change_counters (workspace_id text primary key references workspaces (workspace_id), n bigint not null)`,
      `create table changes (
        workspace_id text not null references workspaces (workspace_id), n bigint not null, entity text not null, entity_id text not null,
        primary key (workspace_id, n))`,
      `create table dispatch_counters (
        workspace_id text not null, replica_id text not null, sequence bigint not null,
        primary key (workspace_id, replica_id), foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id))`,
    ],
  },
  {
    id: 2,
    name: "deployments",
    statements: [
      `create table deployments (
        workspace_id text not null, deployment_id text not null, pool_id text not null, name text not null, replica_id text,
        generation bigint not null, revision bigint not null, spec text not null, command_id text not null,
        actor_id text not null, actor_name text not null, actor_via text not null,
        created_at bigint not null, updated_at bigint not null, removing bigint not null, removed_at bigint,
        status text, observed_at bigint,
        primary key (workspace_id, deployment_id),
        foreign key (workspace_id, pool_id) references pools (workspace_id, pool_id),
        foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id),
        foreign key (workspace_id, command_id) references commands (workspace_id, command_id))`,
      `create unique index deployments_by_name on deployments (workspace_id, pool_id, name) where removed_at is null`,
      `create index deployments_by_time on deployments (workspace_id, created_at, deployment_id)`,
      `create index deployments_by_replica on deployments (workspace_id, replica_id) where removed_at is null`,
      `create table deployment_revisions (
        workspace_id text not null, deployment_id text not null, revision bigint not null, spec text not null, from_revision bigint,
        actor_id text not null, actor_name text not null, actor_via text not null, created_at bigint not null,
        primary key (workspace_id, deployment_id, revision),
        foreign key (workspace_id, deployment_id) references deployments (workspace_id, deployment_id))`,
      `create table deployment_rollups (
        workspace_id text not null, deployment_id text not null, at bigint not null,
        requests bigint not null, errors bigint not null, retries bigint not null,
        p50_ms double precision, p95_ms double precision, p99_ms double precision,
        primary key (workspace_id, deployment_id, at),
        foreign key (workspace_id, deployment_id) references deployments (workspace_id, deployment_id))`,
      `create index commands_by_resource on commands (workspace_id, resource, created_at)`,
    ],
  },
  {
    id: 3,
    name: "order and limits",
    statements: [
      `alter table commands add column priority bigint not null default 0`,
      `alter table commands add column commit_no bigint not null default 0`,
      `alter table offers add column at bigint not null default 0`,
      `alter table offers add column refusal text`,
      `alter table runs add column concurrency bigint`,
      `alter table runs add column rerun_of text`,
      `alter table pools add column max_runs bigint`,
      `alter table attempts add column retry_at bigint`,
      `create index commands_held on commands (workspace_id, pool_id, kind) where state in ('accepted', 'running')`,
    ],
  },
  {
    id: 4,
    name: "pools and takeover",
    statements: [
      `alter table commands add column requires text`,
      `create table takeovers (
        workspace_id text not null, command_id text not null, takeover_no bigint not null,
        from_replica text not null, to_replica text not null, reason text not null, at bigint not null,
        accepted_at bigint, released_at bigint, settled_at bigint,
        primary key (workspace_id, command_id, takeover_no),
        foreign key (workspace_id, command_id) references commands (workspace_id, command_id),
        foreign key (workspace_id, from_replica) references replicas (workspace_id, replica_id),
        foreign key (workspace_id, to_replica) references replicas (workspace_id, replica_id))`,
      `create index takeovers_pending on takeovers (workspace_id, to_replica) where accepted_at is null`,
      `create index takeovers_unreleased on takeovers (workspace_id, from_replica) where released_at is null`,
      `create index takeovers_unsettled on takeovers (workspace_id, command_id) where settled_at is null`,
    ],
  },
  {
    id: 5,
    name: "retention",
    statements: [
      `create index commands_ended on commands (workspace_id, ended_at) where ended_at is not null`,
      `create index commands_by_replica on commands (workspace_id, replica_id) where replica_id is not null`,
      `create index deployments_by_command on deployments (workspace_id, command_id)`,
      `create index idempotency_keys_by_command on idempotency_keys (workspace_id, command_id)`,
      `create index enrollments_by_replica on enrollments (workspace_id, replica_id)`,
      `create index rollups_by_time on deployment_rollups (workspace_id, at)`,
    ],
  },
  {
    id: 6,
    name: "several processes",
    statements: [
      `create table processes (
        process_id text primary key, peer_url text not null, identity text not null, beat bigint not null, started_at bigint not null,
        leaving bigint not null default 0)`,
      `create index replicas_by_process on replicas (process) where session_id is not null and disconnected_at is null`,
    ],
  },
  {
    id: 7,
    name: "connections and traces",
    statements: [
      `create table connections (
        workspace_id text not null, replica_id text not null, connection_no bigint not null, session_id text,
        at bigint not null, ended_at bigint, code text, message text, remote_address text, version text, times bigint not null,
        primary key (workspace_id, replica_id, connection_no),
        foreign key (workspace_id, replica_id) references replicas (workspace_id, replica_id))`,
      `alter table commands add column trace text`,
    ],
  },
  {
    id: 8,
    name: "keys that change",
    statements: [`alter table replicas add column next_key text`],
  },
];
