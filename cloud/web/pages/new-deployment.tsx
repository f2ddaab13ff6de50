// Making a deployment, or changing one: which model by digest, what runs it, how many, how large. What an apply would
// do, and what is known to be refused, stands beside the form before anything is sent.
import { Button, NumberInput, SegmentedControl, Select, Textarea, TextInput } from "@mantine/core";
import { IconAlertTriangle, IconRocket } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useEffect, useMemo, useState, type ReactNode } from "react";
import { api, artifactUrls, isApiError, newKey, problemCode } from "../api/client.ts";
import { deploymentQuery, deploymentsQuery, poolsQuery } from "../api/queries.ts";
import type { ArtifactStat, Deployment, DeploymentDetail, DeploymentDiff, Pool } from "../api/types.ts";
import { changesText, diffSpecs } from "../deployments/diff.ts";
import { DiffView } from "../deployments/diff-view.tsx";
import {
  DIGEST,
  MIB,
  NAME,
  checkForm,
  emptyForm,
  fieldOf,
  formOf,
  specOf,
  type Field,
  type FieldErrors,
  type SpecForm,
} from "../deployments/spec-form.ts";
import { formatBytes, plural } from "../parts/format.ts";
import { Note, ProblemNote } from "../parts/notes.tsx";
import { PageHead } from "../parts/page.tsx";
import { toast } from "../shell/toasts.tsx";

/** A name to begin with: the file's, as a name may be. */
const nameFrom = (path: string): string =>
  path
    .slice(path.lastIndexOf("/") + 1)
    .replace(/\.[^.]*$/, "")
    .toLowerCase()
    .replace(/[^a-z0-9._-]+/g, "-")
    .replace(/^[^a-z0-9]+|[^a-z0-9]+$/g, "")
    .slice(0, 63);

export function NewDeployment() {
  const search = useSearch({ from: "/frame/deployments/new" });
  return <SpecPage given={search} />;
}

export function ChangeDeployment() {
  const { id } = useParams({ from: "/frame/deployments/$id/change" });
  const search = useSearch({ from: "/frame/deployments/$id/change" });
  const query = useQuery(deploymentQuery(id));
  // The form begins with what was there when it was opened; what comes later is said beside it.
  const [first, setFirst] = useState<DeploymentDetail | null>(null);
  useEffect(() => setFirst((old) => old ?? query.data ?? null), [query.data]);
  if (!first) {
    return (
      <>
        <PageHead title="Change" crumbs={<Crumb />} />
        <div className="body">
          <div className="narrow">
            {query.error && <ProblemNote error={query.error} onRetry={() => void query.refetch()} />}
          </div>
        </div>
      </>
    );
  }
  return <SpecPage given={search} first={first} now={query.data ?? first} />;
}

const Crumb = () => (
  <Link to="/deployments" className="crumb">
    Deployments
  </Link>
);

interface Props {
  given: { pool?: string; store?: string; path?: string; digest?: string };
  first?: DeploymentDetail;
  now?: DeploymentDetail;
}

function SpecPage({ given, first, now }: Props) {
  const navigate = useNavigate();
  const client = useQueryClient();
  const pools = useQuery(poolsQuery);
  const existing = useQuery(deploymentsQuery).data;
  const [poolName, setPool] = useState<string | null>(first?.pool.name ?? given.pool ?? null);
  const [name, setName] = useState(first?.name ?? (given.path ? nameFrom(given.path) : ""));
  const [form, setForm] = useState<SpecForm>(() => ({
    ...(first ? formOf(first.spec) : emptyForm()),
    ...(given.store ? { store: given.store } : {}),
    ...(given.path ? { path: given.path } : {}),
    ...(given.digest
      ? { digest: given.digest }
      : first && given.path && given.path !== first.spec.model.path
        ? { digest: "" }
        : {}),
  }));
  // Of the version that the form's change is made to.
  const [base, setBase] = useState(first);
  const [touched, setTouched] = useState<Partial<Record<Field, true>>>({});
  const [tried, setTried] = useState(false);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [digestOf, setDigestOf] = useState<{ busy: boolean; error: unknown; sizeBytes: number | null }>({
    busy: false,
    error: null,
    sizeBytes: null,
  });
  const [key, setKey] = useState(newKey);

  const pool = pools.data?.find((each) => each.name === poolName);
  useEffect(() => {
    if (poolName === null && pools.data?.length)
      setPool(
        (
          pools.data.find((each) => each.serving.length > 0 && each.agents.connected > 0) ??
          pools.data.find((each) => each.agents.connected > 0) ??
          pools.data[0]!
        ).name,
      );
  }, [pools.data, poolName]);
  // The pool's only store and its first engine are what is meant when nothing was said.
  useEffect(() => {
    if (!pool || first) return;
    setForm((old) => ({
      ...old,
      store:
        pool.stores.some((store) => store.id === old.store) || given.store === old.store
          ? old.store
          : pool.stores.length === 1
            ? pool.stores[0]!.id
            : "",
      engine: pool.serving.some((each) => each.engine === old.engine) ? old.engine : (pool.serving[0]?.engine ?? ""),
    }));
  }, [pool, first, given.store]);

  const set = <K extends keyof SpecForm>(field: K, value: SpecForm[K]) => {
    setForm((old) => ({
      ...old,
      [field]: value,
      // Another file has another digest.
      ...((field === "path" || field === "store") && old.digest !== "" && value !== old[field] ? { digest: "" } : {}),
    }));
    setTouched((old) => ({ ...old, [field]: true }));
    setError(null);
    setKey(newKey());
  };

  const local = useMemo(() => {
    const found: FieldErrors = checkForm(form, pool);
    if (!NAME.test(name))
      found.name =
        name === ""
          ? "The deployment's name is part of its address."
          : "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit.";
    if (poolName === null) found.pool = "Choose where it runs.";
    if (pool && pool.ceilings.deployments === 0 && !first)
      found.pool =
        pool.serving.length === 0
          ? `No agent of ${pool.name} can serve models.`
          : "The agent's policy allows no deployments here.";
    return found;
  }, [form, pool, name, poolName, first]);
  const namesake =
    !first && existing?.find((each) => each.name === name && each.pool.name === poolName && each.state !== "removing");

  // What the control plane said of single fields, beside them; the rest above the form.
  const remote: FieldErrors = {};
  let unplaced = error;
  if (isApiError(error) && error.problem.errors?.length) {
    let all = true;
    for (const each of error.problem.errors) {
      const field = fieldOf(each.path);
      if (field === "") all = false;
      else remote[field] ??= each.message;
    }
    if (all) unplaced = null;
  }

  // ---- what it would do ----
  const spec = specOf(form, base?.spec);
  const specText = JSON.stringify(spec);
  const complete =
    Object.keys(local).every((field) => ["replicas", "cpus", "memoryMiB", "engine"].includes(field)) &&
    form.replicas !== "" &&
    form.cpus !== "" &&
    form.memoryMiB !== "" &&
    form.engine !== "";
  const [settled, setSettled] = useState(specText);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(specText), 300);
    return () => clearTimeout(timer);
  }, [specText]);
  const diff = useQuery({
    queryKey: ["deployments", base?.id, "diff", base?.generation, settled],
    queryFn: () => api.post<DeploymentDiff>(`/v1/deployments/${base!.id}/diff`, { spec: JSON.parse(settled) }),
    enabled: base !== undefined && complete && settled === specText,
    placeholderData: (old) => old,
    retry: false,
    staleTime: Infinity,
  });
  const refused: FieldErrors = {};
  const elsewhere: DeploymentDiff["refusals"] = [];
  if (base && diff.data && settled === specText)
    for (const each of diff.data.refusals) {
      const field = fieldOf(each.path);
      if (field === "") elsewhere.push(each);
      else refused[field] ??= each.message;
    }

  const shown = (field: Field): ReactNode =>
    remote[field] ??
    refused[field] ??
    (tried || touched[field] || ["replicas", "cpus", "memoryMiB"].includes(field) ? local[field] : undefined);
  const moved = base && now && now.generation !== base.generation ? now : null;
  const nothing = base !== undefined && settled === specText && diff.data?.changes.length === 0;
  const wrong = Object.keys(local).length > 0 || Object.keys(refused).length > 0 || elsewhere.length > 0;

  const readDigest = async () => {
    setDigestOf({ busy: true, error: null, sizeBytes: null });
    try {
      const stat = await api.get<ArtifactStat>(artifactUrls.stat(poolName!, form.store, form.path.trim(), true));
      setForm((old) => ({ ...old, digest: stat.digest ?? "" }));
      setDigestOf({ busy: false, error: null, sizeBytes: stat.sizeBytes });
      setError(null);
    } catch (caught) {
      setDigestOf({ busy: false, error: caught, sizeBytes: null });
    }
  };

  const apply = async () => {
    setTried(true);
    if (wrong || namesake || moved) return;
    setBusy(true);
    setError(null);
    try {
      const made = base
        ? await api.put<Deployment>(`/v1/deployments/${base.id}`, { spec }, { "if-match": `"${base.generation}"` })
        : await api.post<Deployment>("/v1/deployments", { pool: poolName, name, spec }, { "idempotency-key": key });
      void client.invalidateQueries({ queryKey: ["deployments"] });
      toast(base ? `${base.name} changes to generation ${made.generation}.` : `${name} is being deployed.`);
      await navigate({ to: "/deployments/$id", params: { id: made.id } });
    } catch (caught) {
      if (base && problemCode(caught) === "PRECONDITION_FAILED")
        await client.invalidateQueries({ queryKey: ["deployments"] });
      else setError(caught);
      setBusy(false);
    }
  };

  const engine = pool?.serving.find((each) => each.engine === form.engine);
  const limits = pool?.ceilings;
  const missing = (["pool", "store", "path", "digest", "name"] as const).filter((field) => local[field] !== undefined);
  return (
    <>
      <PageHead
        title={first ? `Change ${first.name}` : "New deployment"}
        crumbs={<Crumb />}
        actions={
          <>
            {first && (
              <Button
                variant="default"
                renderRoot={(props) => <Link to="/deployments/$id" params={{ id: first.id }} {...props} />}
              >
                Keep as it is
              </Button>
            )}
            <Button
              leftSection={<IconRocket size={14} />}
              loading={busy}
              disabled={nothing || moved !== null || Boolean(namesake)}
              onClick={() => void apply()}
            >
              {first ? "Apply" : name !== "" && NAME.test(name) ? `Deploy ${name}` : "Deploy"}
            </Button>
          </>
        }
      />
      <div className="body">
        {(unplaced !== null || moved) && (
          <div
            className="stack"
            style={{ maxWidth: 1180, marginBottom: 16 }}
            ref={(box) => box?.scrollIntoView({ block: "nearest" })}
          >
            {unplaced !== null && <ProblemNote error={unplaced} />}
            {moved && (
              <Note
                tone="warn"
                title={`${moved.name} has changed since you opened this: ${moved.actor.name} made generation ${moved.generation}.`}
              >
                {changesText(diffSpecs(base!.spec, moved.spec)) || "What it is made from is the same."}. Nothing of
                yours was applied.
                <span className="row" style={{ marginTop: 8 }}>
                  <Button variant="default" size="compact-xs" onClick={() => setBase(moved)}>
                    Go on with mine
                  </Button>
                  <Button
                    variant="default"
                    size="compact-xs"
                    onClick={() => {
                      setBase(moved);
                      setForm(formOf(moved.spec));
                    }}
                  >
                    Begin again with what is there now
                  </Button>
                </span>
              </Note>
            )}
          </div>
        )}
        <div className="newrun">
          <div className="stack" style={{ gap: 16 }}>
            <section className="card">
              <div className="card-head">
                <h2>Model</h2>
                <span className="faint small clip">an ONNX file in a store of the pool</span>
              </div>
              <div className="card-body stack">
                <Select
                  label="Pool"
                  allowDeselect={false}
                  value={poolName}
                  disabled={first !== undefined}
                  onChange={(value) => {
                    setPool(value);
                    setTouched((old) => ({ ...old, pool: true }));
                  }}
                  placeholder={pools.isPending ? "Loading…" : "No pool yet"}
                  data={(pools.data ?? []).map((each) => each.name)}
                  description={pool && `${pool.agents.connected} of ${plural(pool.agents.total, "agent")} connected`}
                  error={shown("pool") ?? (pool && local.pool)}
                />
                <div className="form-pair">
                  <Select
                    label="Store"
                    allowDeselect={false}
                    value={form.store || null}
                    onChange={(value) => set("store", value ?? "")}
                    placeholder="Choose"
                    data={[
                      ...new Set([
                        ...(pool?.stores.filter((store) => store.grants.includes("read")).map((store) => store.id) ??
                          []),
                        ...(form.store ? [form.store] : []),
                      ]),
                    ]}
                    error={shown("store")}
                  />
                  <TextInput
                    label="Path"
                    placeholder="models/digits.onnx"
                    spellCheck={false}
                    value={form.path}
                    onChange={(event) => {
                      const path = event.currentTarget.value;
                      if (!first && !touched.name) setName(nameFrom(path));
                      set("path", path);
                    }}
                    error={shown("path")}
                  />
                </div>
                <div className="with-button">
                  <TextInput
                    label="Digest"
                    placeholder="sha256:…"
                    spellCheck={false}
                    className="grow"
                    styles={{ input: { fontFamily: "var(--mono)", fontSize: 12 } }}
                    value={form.digest}
                    onChange={(event) => set("digest", event.currentTarget.value)}
                    description={
                      DIGEST.test(form.digest.trim())
                        ? digestOf.sizeBytes === null
                          ? "Replicas are made from these bytes and no others: the agent compares."
                          : `Read by the agent from all ${formatBytes(digestOf.sizeBytes)}. Replicas are made from these bytes and no others.`
                        : "The agent reads the file and sends only the digest."
                    }
                    error={shown("digest")}
                    inputWrapperOrder={["label", "input", "description", "error"]}
                  />
                  <Button
                    variant="default"
                    loading={digestOf.busy}
                    disabled={poolName === null || form.store === "" || form.path.trim() === ""}
                    onClick={() => void readDigest()}
                  >
                    Read the digest
                  </Button>
                </div>
                {digestOf.error !== null && <ProblemNote error={digestOf.error} onRetry={() => void readDigest()} />}
              </div>
            </section>
            <section className="card">
              <div className="card-head">
                <h2>Replicas</h2>
              </div>
              <div className="card-body stack">
                <div className="form-three">
                  <NumberInput
                    label="Replicas"
                    min={0}
                    {...(limits ? { max: Math.max(limits.replicas, Number(form.replicas)) } : {})}
                    allowDecimal={false}
                    clampBehavior="none"
                    value={form.replicas}
                    onChange={(value) => set("replicas", value === "" ? "" : Number(value))}
                    description={limits && limits.replicas > 0 ? `up to ${limits.replicas} here` : " "}
                    error={shown("replicas")}
                  />
                  <NumberInput
                    label="Cores a replica"
                    min={0.1}
                    step={0.5}
                    clampBehavior="none"
                    value={form.cpus}
                    onChange={(value) => set("cpus", value === "" ? "" : Number(value))}
                    description={limits && limits.cpus > 0 ? `up to ${limits.cpus} here` : " "}
                    error={shown("cpus")}
                  />
                  <NumberInput
                    label="Memory a replica, MiB"
                    min={32}
                    step={128}
                    clampBehavior="none"
                    value={form.memoryMiB}
                    onChange={(value) => set("memoryMiB", value === "" ? "" : Number(value))}
                    description={
                      limits && limits.memoryBytes > 0
                        ? `up to ${Math.floor(limits.memoryBytes / MIB).toLocaleString("en")} here`
                        : " "
                    }
                    error={shown("memoryMiB")}
                  />
                </div>
                <Textarea
                  label="Environment"
                  description="One NAME=value a line. The control plane keeps these: nothing secret."
                  autosize
                  minRows={2}
                  maxRows={10}
                  spellCheck={false}
                  value={form.env}
                  onChange={(event) => set("env", event.currentTarget.value)}
                  error={shown("env")}
                  styles={{ input: { fontFamily: "var(--mono)", fontSize: 12, lineHeight: 1.55 } }}
                />
                <Textarea
                  label="Secrets, by name"
                  description="One NAME=secret a line: the name that a secret has in the agent's configuration. Its value never leaves the agent."
                  autosize
                  minRows={2}
                  maxRows={10}
                  spellCheck={false}
                  value={form.secrets}
                  onChange={(event) => set("secrets", event.currentTarget.value)}
                  error={shown("secrets")}
                  styles={{ input: { fontFamily: "var(--mono)", fontSize: 12, lineHeight: 1.55 } }}
                />
              </div>
            </section>
          </div>
          <div className="stack" style={{ gap: 16 }}>
            <section className="card">
              <div className="card-head">
                <h2>Name and engine</h2>
              </div>
              <div className="card-body stack">
                <TextInput
                  label="Name"
                  description="Part of the endpoint's address; it never changes."
                  spellCheck={false}
                  disabled={first !== undefined}
                  value={name}
                  onChange={(event) => {
                    setName(event.currentTarget.value);
                    setTouched((old) => ({ ...old, name: true }));
                    setKey(newKey());
                  }}
                  error={shown("name")}
                />
                {namesake && (
                  <Note tone="warn" title={`${namesake.pool.name} has a deployment ${namesake.name} already.`}>
                    Give this one another name, or{" "}
                    <Link
                      to="/deployments/$id/change"
                      params={{ id: namesake.id }}
                      search={{
                        ...(form.store ? { store: form.store } : {}),
                        ...(form.path ? { path: form.path } : {}),
                        ...(form.digest ? { digest: form.digest } : {}),
                      }}
                      className="link"
                    >
                      make this model its next revision
                    </Link>
                    .
                  </Note>
                )}
                <Engines
                  pool={pool}
                  value={form.engine}
                  onChange={(value) => set("engine", value)}
                  error={shown("engine")}
                />
                {engine && <Isolation engine={engine} />}
              </div>
            </section>
            <section className="card" aria-live="polite">
              <div className="card-head">
                <h2>What this does</h2>
              </div>
              <div className="card-body stack">
                {base ? (
                  diff.error ? (
                    <ProblemNote error={diff.error} />
                  ) : !complete ? (
                    <span className="dim">The changes show here when every field says something that can be.</span>
                  ) : diff.data ? (
                    <DiffView diff={diff.data} />
                  ) : (
                    <span className="dim">Comparing…</span>
                  )
                ) : missing.length > 0 ? (
                  <span className="dim">Still to give: {missing.join(", ")}.</span>
                ) : (
                  <span>
                    {pool?.name} {plural(Number(form.replicas), "replica")} of{" "}
                    <span className="mono">{form.path.trim()}</span> with {plural(Number(form.cpus), "core")} and{" "}
                    {form.memoryMiB} MiB each, behind the endpoint <span className="mono">/{name}/v2</span> in the
                    agent's network.
                  </span>
                )}
                {pool && pool.agents.connected === 0 && (
                  <Note tone="warn" title={`No agent of ${pool.name} is connected.`}>
                    It waits for one, and says so. Limits and engines shown are what was last heard.
                  </Note>
                )}
                <span className="faint small">
                  The agent's own policy decides in the end; a refusal names its rule.
                </span>
              </div>
            </section>
          </div>
        </div>
      </div>
    </>
  );
}

const ENGINE_WORDS: Record<string, string> = { process: "Process", docker: "Docker" };

function Engines({
  pool,
  value,
  onChange,
  error,
}: {
  pool: Pool | undefined;
  value: string;
  onChange: (value: string) => void;
  error: ReactNode;
}) {
  if (!pool) return null;
  if (pool.serving.length === 0)
    return (
      <Note tone="warn" title={`No agent of ${pool.name} can serve models.`}>
        Whoever runs it adds <code>serving</code> to the agent's configuration and allows <code>deployment.*</code>, an
        engine and ceilings in its policy.
      </Note>
    );
  const names = [...new Set([...pool.serving.map((each) => each.engine), ...(value ? [value] : [])])];
  return (
    <div>
      <span className="field-label" id="engine-label">
        Engine
      </span>
      <SegmentedControl
        aria-labelledby="engine-label"
        fullWidth
        value={value}
        onChange={onChange}
        data={names.map((each) => ({ value: each, label: ENGINE_WORDS[each] ?? each }))}
      />
      {error && (
        <div className="tone-bad small" role="alert" style={{ marginTop: 4 }}>
          {error}
        </div>
      )}
    </div>
  );
}

export function Isolation({ engine }: { engine: { engine: string; isolated: boolean } }) {
  return engine.isolated ? (
    <span className="dim small">Replicas run as containers: apart from the host, within the limits given here.</span>
  ) : (
    <Note
      tone="warn"
      icon={IconAlertTriangle}
      title="Replicas run as plain processes of the agent's user: nothing keeps them from the agent's machine, and the limits for cores and memory are not enforced."
    />
  );
}
