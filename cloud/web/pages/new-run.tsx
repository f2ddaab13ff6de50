// Starting a run: which pipeline (pasted, a file, one that lies in a store, or that of an earlier run), where, with what.
import { Button, FileButton, NumberInput, Select, Switch, Textarea, TextInput } from "@mantine/core";
import { IconCheck, IconFileUpload, IconPlayerPlay } from "@tabler/icons-react";
import { useQueries, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { useEffect, useMemo, useState } from "react";
import { api, artifactUrls, send } from "../api/client.ts";
import { HOUR_MS, poolsQuery, runQuery } from "../api/queries.ts";
import type { ArtifactEntry, ArtifactList, ParamValue, Run } from "../api/types.ts";
import { Note, ProblemNote } from "../parts/notes.tsx";
import { PageHead } from "../parts/page.tsx";
import { plural, shortImage } from "../parts/format.ts";
import { readPipeline } from "../runs/read-pipeline.ts";

/** Folders of a store where pipelines are looked for. */
const FOLDERS = ["", "pipelines"];
const DAY_HOURS = 24;

export function NewRun() {
  const search = useSearch({ from: "/frame/runs/new" });
  const navigate = useNavigate();
  const client = useQueryClient();
  const pools = useQuery(poolsQuery);
  const [pool, setPool] = useState<string | null>(search.pool ?? null);
  const [text, setText] = useState("");
  const [origin, setOrigin] = useState<string | null>(null);
  const [given, setGiven] = useState<Record<string, ParamValue | "">>({});
  const [priority, setPriority] = useState(0);
  const [hours, setHours] = useState(DAY_HOURS);
  const [notBefore, setNotBefore] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [loadError, setLoadError] = useState<unknown>(null);

  // Another run as the source: its pipeline and its parameters.
  const before = useQuery({ ...runQuery(search.from ?? ""), enabled: search.from !== undefined });
  useEffect(() => {
    if (!before.data || text !== "") return;
    setText(JSON.stringify(before.data.spec, null, 2));
    setGiven(before.data.params);
    setPriority(before.data.priority);
    setPool((old) => old ?? before.data.pool.name);
    setOrigin(`run ${before.data.id}`);
    // oxlint-disable-next-line react/exhaustive-deps -- fills an empty form once
  }, [before.data]);

  const load = async (fromPool: string, store: string, path: string) => {
    setLoadError(null);
    try {
      const response = await send("GET", artifactUrls.content(fromPool, store, path), { headers: { accept: "*/*" } });
      setText(await response.text());
      setGiven({});
      setOrigin(`${store}/${path}`);
    } catch (caught) {
      setLoadError(caught);
    }
  };
  useEffect(() => {
    if (search.pool && search.store && search.path) void load(search.pool, search.store, search.path);
    // oxlint-disable-next-line react/exhaustive-deps -- once, from the address
  }, []);
  useEffect(() => {
    if (pool === null && pools.data?.length)
      setPool((pools.data.find((each) => each.agents.connected > 0) ?? pools.data[0]!).name);
  }, [pools.data, pool]);

  const read = useMemo(() => readPipeline(text), [text]);
  const chosen = pools.data?.find((each) => each.name === pool);
  const missing = read.pipeline
    ? read.pipeline.params.filter(
        (param) => param.fallback === undefined && (given[param.name] === undefined || given[param.name] === ""),
      )
    : [];
  const strange =
    read.pipeline && chosen && chosen.programs.length > 0
      ? read.pipeline.steps.filter((step) => step.program !== "" && !chosen.programs.includes(step.program))
      : [];

  const start = async () => {
    if (!read.pipeline || pool === null) return;
    setBusy(true);
    setError(null);
    const params: Record<string, ParamValue> = {};
    for (const param of read.pipeline.params) {
      const value = given[param.name];
      if (value !== undefined && value !== "") params[param.name] = value;
    }
    try {
      const order = {
        ...(priority === 0 ? {} : { priority }),
        ...(hours === DAY_HOURS ? {} : { expiresInMs: Math.round(hours * HOUR_MS) }),
        ...(notBefore === "" ? {} : { notBefore: new Date(notBefore).getTime() }),
      };
      // The same pipeline in the same pool is that run again, and is kept as such.
      const source = before.data;
      // A field that was emptied means the default, not the value of that run.
      const defaults = Object.fromEntries(
        read.pipeline.params.flatMap((param) => (param.fallback === undefined ? [] : [[param.name, param.fallback]])),
      );
      const same = source !== undefined && source.pool.name === pool && text === JSON.stringify(source.spec, null, 2);
      const run = same
        ? await api.post<Run>(`/v1/runs/${source.id}/rerun`, { params: { ...defaults, ...params }, priority, ...order })
        : await api.post<Run>("/v1/runs", { pool, pipeline: read.pipeline.value, params, ...order });
      void client.invalidateQueries({ queryKey: ["runs"] });
      await navigate({ to: "/runs/$id", params: { id: run.id } });
    } catch (caught) {
      setError(caught);
      setBusy(false);
    }
  };

  return (
    <>
      <PageHead
        title={search.from ? "Run again" : "Start a run"}
        crumbs={
          <Link to="/runs" className="crumb">
            Runs
          </Link>
        }
        actions={
          <>
            {missing.length > 0 && (
              <span className="faint small">
                Give a value for {missing.map((param) => param.name).join(", ")} first
              </span>
            )}
            <Button
              leftSection={<IconPlayerPlay size={14} />}
              loading={busy}
              disabled={!read.pipeline || pool === null || missing.length > 0}
              onClick={() => void start()}
            >
              {read.pipeline ? `Start ${read.pipeline.name}` : "Start"}
            </Button>
          </>
        }
      />
      <div className="body">
        {error !== null && (
          <div style={{ maxWidth: 1180, marginBottom: 16 }} ref={(box) => box?.scrollIntoView({ block: "nearest" })}>
            <ProblemNote error={error} />
          </div>
        )}
        <div className="newrun">
          <div className="stack" style={{ gap: 16 }}>
            <section className="card">
              <div className="card-head">
                <h2>Pipeline</h2>
                {origin && <span className="faint small clip">from {origin}</span>}
                <span style={{ marginLeft: "auto" }}>
                  <FileButton
                    accept="application/json,.json"
                    onChange={(file) => {
                      if (!file) return;
                      void file.text().then((content) => {
                        setText(content);
                        setGiven({});
                        setOrigin(`file ${file.name}`);
                      });
                    }}
                  >
                    {(props) => (
                      <Button variant="default" size="compact-xs" leftSection={<IconFileUpload size={13} />} {...props}>
                        Choose a file
                      </Button>
                    )}
                  </FileButton>
                </span>
              </div>
              <div className="card-body stack">
                {pool !== null && chosen && (
                  <InStores
                    pool={pool}
                    stores={chosen.stores.filter((store) => store.grants.includes("read")).map((store) => store.id)}
                    online={chosen.agents.connected > 0}
                    chosen={origin}
                    onPick={(store, path) => void load(pool, store, path)}
                  />
                )}
                {loadError !== null && <ProblemNote error={loadError} />}
                {before.error && <ProblemNote error={before.error} onRetry={() => void before.refetch()} />}
                <Textarea
                  label={text === "" ? "Paste its JSON" : "Its JSON"}
                  autosize
                  minRows={8}
                  maxRows={24}
                  spellCheck={false}
                  value={text}
                  onChange={(event) => setText(event.currentTarget.value)}
                  error={text.trim() !== "" && read.problem}
                  placeholder='{ "name": "…", "outputs": { "store": "…" }, "steps": [ … ] }'
                  styles={{ input: { fontFamily: "var(--mono)", fontSize: 12, lineHeight: 1.55 } }}
                />
              </div>
            </section>
          </div>
          <div className="stack" style={{ gap: 16 }}>
            <section className="card">
              <div className="card-head">
                <h2>Where</h2>
              </div>
              <div className="card-body stack">
                <Select
                  label="Pool"
                  allowDeselect={false}
                  value={pool}
                  onChange={setPool}
                  placeholder={pools.isPending ? "Loading…" : "No pool yet"}
                  data={(pools.data ?? []).map((each) => each.name)}
                  description={
                    chosen && `${chosen.agents.connected} of ${plural(chosen.agents.total, "agent")} connected`
                  }
                />
                {pools.data?.length === 0 && (
                  <Note tone="warn" title="There is no pool to run in yet.">
                    <Link to="/agents/new" className="link">
                      Add an agent
                    </Link>{" "}
                    first: it makes its pool.
                  </Note>
                )}
                {chosen && chosen.agents.connected === 0 && (
                  <Note tone="warn" title={`No agent of ${chosen.name} is connected.`}>
                    The run waits for one, up to {plural(hours, "hour")}, and says so.
                  </Note>
                )}
              </div>
            </section>
            {read.pipeline && read.pipeline.params.length > 0 && (
              <section className="card">
                <div className="card-head">
                  <h2>Parameters</h2>
                </div>
                <div className="card-body stack" style={{ gap: 14 }}>
                  {read.pipeline.params.map((param) => {
                    const value = given[param.name];
                    const set = (next: ParamValue | "") => setGiven((old) => ({ ...old, [param.name]: next }));
                    const shared = { label: param.name, description: param.description || undefined };
                    if (typeof param.fallback === "boolean") {
                      return (
                        <Switch
                          key={param.name}
                          {...shared}
                          checked={typeof value === "boolean" ? value : param.fallback}
                          onChange={(event) => set(event.currentTarget.checked)}
                        />
                      );
                    }
                    if (typeof param.fallback === "number") {
                      return (
                        <NumberInput
                          key={param.name}
                          {...shared}
                          placeholder={String(param.fallback)}
                          value={typeof value === "number" || typeof value === "string" ? value : ""}
                          onChange={(next) => set(typeof next === "number" ? next : next === "" ? "" : Number(next))}
                        />
                      );
                    }
                    return (
                      <TextInput
                        key={param.name}
                        {...shared}
                        required={param.fallback === undefined}
                        placeholder={param.fallback === undefined ? "" : String(param.fallback)}
                        value={value === undefined ? "" : String(value)}
                        onChange={(event) => set(event.currentTarget.value)}
                      />
                    );
                  })}
                </div>
              </section>
            )}
            <section className="card">
              <div className="card-head">
                <h2>When</h2>
              </div>
              <div className="card-body stack" style={{ gap: 14 }}>
                <TextInput
                  type="datetime-local"
                  label="Not before"
                  description="Empty: at once. At most six days ahead."
                  value={notBefore}
                  onChange={(event) => setNotBefore(event.currentTarget.value)}
                />
                <NumberInput
                  label="Give up after"
                  description="Hours to wait for an agent that takes it."
                  min={0.1}
                  max={7 * DAY_HOURS}
                  value={hours}
                  onChange={(next) => setHours(typeof next === "number" && next > 0 ? next : DAY_HOURS)}
                />
                <NumberInput
                  label="Priority"
                  description="-100 to 100. Of runs that wait, the higher goes first."
                  min={-100}
                  max={100}
                  allowDecimal={false}
                  value={priority}
                  onChange={(next) => setPriority(typeof next === "number" ? next : 0)}
                />
              </div>
            </section>
            {read.pipeline && (
              <section className="card">
                <div className="card-head">
                  <h2>{read.pipeline.name}</h2>
                  <span className="faint small">{plural(read.pipeline.steps.length, "step")}</span>
                </div>
                <div className="card-body">
                  {read.pipeline.description && (
                    <p className="dim" style={{ margin: "0 0 10px" }}>
                      {read.pipeline.description}
                    </p>
                  )}
                  <ol style={{ margin: 0, paddingLeft: 18 }}>
                    {read.pipeline.steps.map((step) => (
                      <li key={step.name} style={{ padding: "2px 0" }}>
                        <span style={{ fontWeight: 550 }}>{step.name}</span>{" "}
                        <span className="faint">
                          runs <span className="mono">{step.program || shortImage(step.image)}</span>
                          {step.after.length > 0 && `, after ${step.after.join(", ")}`}
                        </span>
                      </li>
                    ))}
                  </ol>
                </div>
              </section>
            )}
            {strange.length > 0 && chosen && (
              <Note
                tone="warn"
                title={`${chosen.name} has no program ${[...new Set(strange.map((step) => step.program))].join(", ")}.`}
              >
                Its agents know: {chosen.programs.join(", ")}. The run would be refused.
              </Note>
            )}
          </div>
        </div>
      </div>
    </>
  );
}

function InStores({
  pool,
  stores,
  online,
  chosen,
  onPick,
}: {
  pool: string;
  stores: string[];
  online: boolean;
  chosen: string | null;
  onPick: (store: string, path: string) => void;
}) {
  const lists = useQueries({
    queries: stores.flatMap((store) =>
      FOLDERS.map((path) => ({
        queryKey: ["artifacts", pool, store, "pipelines", path],
        queryFn: async ({ signal }: { signal: AbortSignal }) => ({
          store,
          entries: (await api.get<ArtifactList>(artifactUrls.list(pool, store, path), signal)).entries,
        }),
        enabled: online,
        retry: false,
        staleTime: 30_000,
        refetchOnWindowFocus: false,
      })),
    ),
  });
  const found = lists.flatMap((list) =>
    list.data
      ? list.data.entries
          .filter((entry: ArtifactEntry) => entry.kind === "file" && entry.name.endsWith(".pipeline.json"))
          .map((entry: ArtifactEntry) => ({ store: list.data!.store, entry }))
      : [],
  );
  if (found.length === 0) return null;
  return (
    <div>
      <span className="field-label">Found in the stores of {pool}</span>
      <div className="card" style={{ boxShadow: "none" }}>
        <ul className="list">
          {found.map(({ store, entry }) => {
            const picked = chosen === `${store}/${entry.path}`;
            return (
              <li key={`${store}/${entry.path}`}>
                <button
                  type="button"
                  className="list-row source-item"
                  aria-pressed={picked}
                  onClick={() => onPick(store, entry.path)}
                >
                  <span style={{ fontWeight: 550 }}>{entry.name.replace(/\.pipeline\.json$/, "")}</span>
                  <span className="mono faint clip">
                    {store}/{entry.path}
                  </span>
                  {picked && (
                    <IconCheck size={15} className="tone-run" style={{ marginLeft: "auto" }} aria-label="chosen" />
                  )}
                </button>
              </li>
            );
          })}
        </ul>
      </div>
    </div>
  );
}
