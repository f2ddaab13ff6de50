// The tables as the queries see them: one interface a table. Nothing but cloud/store imports this.
// Times are ms since the epoch; JSON is text; booleans are 0 and 1. The columns' purpose is told in columns.ts.

export interface Tables {
  cloud: { singleton: number; incarnation: string; made_at: number };
  cloud_keys: { kid: string; purpose: string; public_key: string; created_at: number };
  processes: {
    process_id: string;
    peer_url: string;
    identity: string;
    beat: number;
    started_at: number;
    leaving: number;
  };
  organisations: { organisation_id: string; name: string; created_at: number };
  workspaces: { workspace_id: string; organisation_id: string; name: string; created_at: number };
  users: {
    workspace_id: string;
    user_id: string;
    name: string;
    role: string;
    password_hash: string | null;
    created_at: number;
  };
  signins: {
    workspace_id: string;
    secret_hash: string;
    user_id: string;
    expires_at: number;
    redeemed_at: number | null;
  };
  web_sessions: {
    workspace_id: string;
    session_hash: string;
    user_id: string;
    created_at: number;
    used_at: number;
    expires_at: number;
  };
  api_tokens: {
    workspace_id: string;
    token_id: string;
    user_id: string;
    label: string;
    hint: string;
    token_hash: string;
    created_at: number;
    expires_at: number;
    last_used_at: number | null;
    revoked_at: number | null;
  };
  pools: {
    workspace_id: string;
    pool_id: string;
    name: string;
    created_at: number;
    max_runs: number | null;
  };
  replicas: {
    workspace_id: string;
    replica_id: string;
    pool_id: string;
    name: string;
    public_key: string;
    next_key: string | null;
    fingerprint: string;
    created_at: number;
    revoked_at: number | null;
    deleted_at: number | null;
    session_id: string | null;
    epoch: number;
    process: string | null;
    instance: string | null;
    connected_at: number | null;
    disconnected_at: number | null;
    last_seen_at: number | null;
    remote_address: string | null;
    journal_id: string | null;
    status: string | null;
    status_at: number | null;
  };
  alarms: { workspace_id: string; replica_id: string; alarm_no: number; at: number; code: string; message: string };
  connections: {
    workspace_id: string;
    replica_id: string;
    connection_no: number;
    session_id: string | null;
    at: number;
    ended_at: number | null;
    code: string | null;
    message: string | null;
    remote_address: string | null;
    version: string | null;
    times: number;
  };
  enrollments: {
    workspace_id: string;
    enrollment_id: string;
    pool_id: string;
    name: string | null;
    secret_hash: string;
    created_at: number;
    expires_at: number;
    used_at: number | null;
    withdrawn_at: number | null;
    replica_id: string | null;
  };
  enrollment_refusals: {
    workspace_id: string;
    enrollment_id: string;
    refusal_no: number;
    at: number;
    code: string;
    message: string;
    remote_address: string | null;
  };
  commands: {
    workspace_id: string;
    command_id: string;
    pool_id: string;
    kind: string;
    resource: string;
    state: string;
    intent: string;
    body: string;
    actor_id: string;
    actor_name: string;
    actor_via: string;
    replica_id: string | null;
    run_id: string | null;
    created_at: number;
    not_before: number;
    expires_at: number;
    accepted_at: number | null;
    started_at: number | null;
    ended_at: number | null;
    offers: number;
    error: string | null;
    result: string | null;
    priority: number;
    commit_no: number;
    requires: string | null;
    trace: string | null;
  };
  takeovers: {
    workspace_id: string;
    command_id: string;
    takeover_no: number;
    from_replica: string;
    to_replica: string;
    reason: string;
    at: number;
    accepted_at: number | null;
    released_at: number | null;
    settled_at: number | null;
  };
  offers: {
    workspace_id: string;
    command_id: string;
    attempt: number;
    replica_id: string;
    sequence: number;
    at: number;
    refusal: string | null;
  };
  command_events: {
    workspace_id: string;
    command_id: string;
    event_no: number;
    at: number;
    type: string;
    replica_id: string | null;
    applied: number;
    detail: string | null;
  };
  runs: {
    workspace_id: string;
    run_id: string;
    command_id: string;
    pool_id: string;
    pipeline: string;
    spec: string;
    params: string;
    created_at: number;
    concurrency: number | null;
    rerun_of: string | null;
  };
  attempts: {
    workspace_id: string;
    run_id: string;
    step: string;
    attempt: number;
    state: string;
    started_at: number | null;
    ended_at: number | null;
    exit_code: number | null;
    error: string | null;
    outputs: string;
    log_seq: number;
    adopted: number;
    retry_at: number | null;
  };
  journals: {
    workspace_id: string;
    replica_id: string;
    journal_id: string;
    committed_through: number;
    ignored: number;
    first_seen_at: number;
  };
  idempotency_keys: {
    workspace_id: string;
    actor_id: string;
    method: string;
    route: string;
    key: string;
    request_digest: string;
    status: number;
    body: string;
    command_id: string | null;
    created_at: number;
  };
  change_counters: { workspace_id: string; n: number };
  changes: { workspace_id: string; n: number; entity: string; entity_id: string };
  deployments: {
    workspace_id: string;
    deployment_id: string;
    pool_id: string;
    name: string;
    replica_id: string | null;
    generation: number;
    revision: number;
    spec: string;
    command_id: string;
    actor_id: string;
    actor_name: string;
    actor_via: string;
    created_at: number;
    updated_at: number;
    removing: number;
    removed_at: number | null;
    status: string | null;
    observed_at: number | null;
  };
  deployment_revisions: {
    workspace_id: string;
    deployment_id: string;
    revision: number;
    spec: string;
    from_revision: number | null;
    actor_id: string;
    actor_name: string;
    actor_via: string;
    created_at: number;
  };
  deployment_rollups: {
    workspace_id: string;
    deployment_id: string;
    at: number;
    requests: number;
    errors: number;
    retries: number;
    p50_ms: number | null;
    p95_ms: number | null;
    p99_ms: number | null;
  };
  dispatch_counters: { workspace_id: string; replica_id: string; sequence: number };
}
