// A store: its tree on the left, the chosen file on the right. Both are in the address.
import { ActionIcon, Button, FileButton, Modal, Select, Tooltip } from "@mantine/core";
import {
  IconBraces,
  IconFile,
  IconFileText,
  IconFileTypeCsv,
  IconFilterOff,
  IconFolder,
  IconFolderOpen,
  IconMarkdown,
  IconPackage,
  IconPhoto,
  IconPlugConnectedX,
  IconRefresh,
  IconUpload,
  IconX,
  type Icon,
} from "@tabler/icons-react";
import { useInfiniteQuery, useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useMemo, useRef, useState } from "react";
import { artifactUrls, problemCode, upload } from "../api/client.ts";
import { api } from "../api/client.ts";
import { listQuery, poolsQuery } from "../api/queries.ts";
import type { ArtifactEntry, ArtifactStat, WrittenArtifact } from "../api/types.ts";
import { Confirm } from "../parts/confirm.tsx";
import { formatBytes, plural } from "../parts/format.ts";
import { Empty, ProblemNote, RowSkeletons, isOffline } from "../parts/notes.tsx";
import { Filter, PageHead, Split } from "../parts/page.tsx";
import { DataTable, type Column } from "../parts/table.tsx";
import { Ago } from "../parts/time.tsx";
import { toast } from "../shell/toasts.tsx";
import { whereOf } from "./stores.tsx";
import { PreviewPane } from "../viewers/preview-pane.tsx";

export function iconOf(entry: { kind: "file" | "tree"; name: string; mediaType: string | null }): Icon {
  if (entry.kind === "tree") return IconFolder;
  const type = entry.mediaType ?? "";
  const name = entry.name.toLowerCase();
  if (type.startsWith("image/")) return IconPhoto;
  if (type.includes("csv") || /\.(csv|tsv)$/.test(name)) return IconFileTypeCsv;
  if (type.includes("json") || name.endsWith(".json")) return IconBraces;
  if (type.includes("markdown") || name.endsWith(".md")) return IconMarkdown;
  if (/\.(onnx|pt|pkl|safetensors|gguf|tar|gz|zip)$/.test(name)) return IconPackage;
  if (type.startsWith("text/") || /\.(log|txt|ts|js|py|yaml|yml)$/.test(name)) return IconFileText;
  return IconFile;
}

export function Artifacts() {
  const { pool, store } = useParams({ from: "/frame/artifacts/$pool/$store" });
  const search = useSearch({ from: "/frame/artifacts/$pool/$store" });
  const navigate = useNavigate({ from: "/artifacts/$pool/$store" });
  const client = useQueryClient();
  const pools = useQuery(poolsQuery);
  const path = search.path ?? "";
  const list = useInfiniteQuery(listQuery(pool, store, path));
  const entries = useMemo(() => list.data?.pages.flatMap((page) => page.entries) ?? [], [list.data]);
  const q = search.q?.toLowerCase() ?? "";
  const rows = useMemo(
    () =>
      entries
        .filter((entry) => q === "" || entry.name.toLowerCase().includes(q))
        .sort((a, b) =>
          a.kind === b.kind ? a.name.localeCompare(b.name, "en", { numeric: true }) : a.kind === "tree" ? -1 : 1,
        ),
    [entries, q],
  );
  const here = pools.data?.find((each) => each.name === pool);
  const facts = here?.stores.find((each) => each.id === store);
  const canWrite = facts?.grants.includes("write") ?? false;
  const canDelete = facts?.grants.includes("delete") ?? false;

  const open = (entry: ArtifactEntry) =>
    void navigate({
      search:
        entry.kind === "tree"
          ? { path: entry.path }
          : (old) => ({ ...(old.path ? { path: old.path } : {}), ...(old.q ? { q: old.q } : {}), file: entry.path }),
    });
  const parent = path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : "";
  const up = () => path !== "" && void navigate({ search: parent === "" ? {} : { path: parent } });
  const segments = path === "" ? [] : path.split("/");
  const split = search.file !== undefined;

  const columns = useMemo<Column<ArtifactEntry>[]>(
    () => [
      {
        key: "name",
        title: "Name",
        width: "minmax(110px, 1fr)",
        render: (entry) => {
          const Shape = iconOf(entry);
          return (
            <span className="row">
              <Shape
                size={16}
                stroke={1.6}
                className={entry.kind === "tree" ? "tone-run" : "faint"}
                style={{ flex: "none" }}
                aria-hidden
              />
              <Link
                to="/artifacts/$pool/$store"
                params={{ pool, store }}
                search={entry.kind === "tree" ? { path: entry.path } : { ...(path ? { path } : {}), file: entry.path }}
                className="main-link plain clip"
                aria-label={`${entry.name}, ${entry.kind === "tree" ? "folder" : formatBytes(entry.sizeBytes)}`}
              >
                {entry.name}
              </Link>
            </span>
          );
        },
      },
      {
        key: "size",
        title: "Size",
        width: "76px",
        right: true,
        render: (entry) => <span className="dim">{entry.kind === "tree" ? "" : formatBytes(entry.sizeBytes)}</span>,
      },
      {
        key: "modified",
        title: "Modified",
        width: "92px",
        right: true,
        wide: split,
        render: (entry) =>
          entry.modifiedAt === null ? <span className="faint">–</span> : <Ago at={entry.modifiedAt} className="dim" />,
      },
      ...(split
        ? []
        : [
            {
              key: "type",
              title: "Type",
              width: "minmax(120px, 0.6fr)",
              wide: true,
              render: (entry: ArtifactEntry) => (
                <span className="faint">{entry.kind === "tree" ? "Folder" : (entry.mediaType ?? "–")}</span>
              ),
            },
          ]),
    ],
    [pool, store, path, split],
  );

  const refresh = () => client.invalidateQueries({ queryKey: ["artifacts", pool, store] });
  const storeNames = (pools.data ?? []).flatMap((each) =>
    each.stores.map((one) => ({ value: `${each.name}/${one.id}`, label: `${each.name} / ${one.id}` })),
  );

  const left = (
    <>
      <div className="toolbar" style={{ paddingRight: 16 }}>
        <nav className="crumbs" aria-label="Path">
          <Link
            to="/artifacts/$pool/$store"
            params={{ pool, store }}
            search={{}}
            className="crumb"
            title="Root of the store"
          >
            {store}
          </Link>
          {segments.map((segment, n) => {
            const to = segments.slice(0, n + 1).join("/");
            return (
              <span key={to} className="row" style={{ gap: 5 }}>
                <span className="sep" aria-hidden>
                  /
                </span>
                {n === segments.length - 1 ? (
                  <span className="clip" style={{ fontWeight: 600 }} aria-current="page">
                    {segment}
                  </span>
                ) : (
                  <Link
                    to="/artifacts/$pool/$store"
                    params={{ pool, store }}
                    search={{ path: to }}
                    className="crumb clip"
                  >
                    {segment}
                  </Link>
                )}
              </span>
            );
          })}
        </nav>
        <span className="row" style={{ marginLeft: "auto", gap: 6 }}>
          <Filter
            className="filter-s"
            label="Filter"
            value={search.q ?? ""}
            onChange={(text) =>
              void navigate({ search: (old) => ({ ...old, q: text || undefined }) as never, replace: true })
            }
          />
          <Tooltip label="Read the list again">
            <ActionIcon
              variant="default"
              aria-label="Read the list again"
              loading={list.isRefetching}
              onClick={() => void refresh()}
            >
              <IconRefresh size={15} stroke={1.8} />
            </ActionIcon>
          </Tooltip>
          {canWrite && !isOffline(list.error) && (
            <Upload pool={pool} store={store} path={path} onDone={() => void refresh()} names={entries} />
          )}
        </span>
      </div>
      {list.error ? (
        isOffline(list.error) ? (
          <>
            <div style={{ padding: "14px var(--pad) 0" }}>
              <ProblemNote error={list.error} onRetry={() => void list.refetch()} />
            </div>
            <Empty icon={IconPlugConnectedX} title="The agent is not there to ask">
              The control plane keeps no contents. What is in this store can be seen while an agent of {pool} is
              connected; this page then shows it by itself.
            </Empty>
          </>
        ) : problemCode(list.error) === "ARTIFACT_NOT_FOUND" ? (
          <Empty
            icon={IconFolderOpen}
            title="There is no such folder"
            action={
              <Button variant="default" onClick={up}>
                Up one level
              </Button>
            }
          >
            {canWrite ? "A file that is uploaded here makes it." : "It was removed, or the link to it is wrong."}
          </Empty>
        ) : (
          <div style={{ padding: "14px var(--pad)" }}>
            <ProblemNote error={list.error} onRetry={() => void list.refetch()} />
          </div>
        )
      ) : list.isPending ? (
        <RowSkeletons height={34} rows={10} />
      ) : entries.length === 0 ? (
        <Empty
          icon={IconFolderOpen}
          title={path === "" ? "This store is empty" : "This folder is empty"}
          action={
            path === "" ? undefined : (
              <Button variant="default" onClick={up}>
                Up one level
              </Button>
            )
          }
        >
          {canWrite
            ? "Upload a file, or run a pipeline that writes here."
            : "Or the agent's policy shows nothing of it."}
        </Empty>
      ) : rows.length === 0 ? (
        <Empty
          icon={IconFilterOff}
          title="Nothing matches the filter"
          action={
            <Button
              variant="default"
              onClick={() => void navigate({ search: (old) => ({ ...old, q: undefined }) as never })}
            >
              Clear the filter
            </Button>
          }
        >
          {plural(entries.length, "entry", "entries")} here
          {list.hasNextPage ? " so far, and more that are not read yet" : ""}; none has “{search.q}” in its name.
        </Empty>
      ) : (
        <DataTable
          label={`Contents of ${store}/${path}`}
          columns={columns}
          rows={rows}
          rowKey={(entry) => entry.path}
          rowHeight={34}
          selected={search.file}
          onOpen={open}
          onBack={up}
          onEnd={list.hasNextPage && !list.isFetchingNextPage ? () => void list.fetchNextPage() : undefined}
          footer={
            <>
              {q === ""
                ? plural(entries.length, "entry", "entries")
                : `${rows.length} of ${plural(entries.length, "entry", "entries")}`}
              {list.hasNextPage && ", more follow"}
            </>
          }
        />
      )}
    </>
  );

  return (
    <>
      <PageHead
        title={store}
        crumbs={
          <>
            <Link to="/artifacts" className="crumb">
              Artifacts
            </Link>
            <span className="sep" aria-hidden>
              /
            </span>
            <span className="dim">{pool}</span>
          </>
        }
        after={
          <span className="row" style={{ gap: 6 }}>
            {facts && <span className="tag clip">{whereOf(facts)}</span>}
            {here?.stale && <span className="tag warn">agent offline</span>}
          </span>
        }
        actions={
          storeNames.length > 1 ? (
            <Select
              aria-label="Store"
              w={200}
              allowDeselect={false}
              data={storeNames}
              value={`${pool}/${store}`}
              onChange={(value) => {
                const [nextPool, nextStore] = (value ?? "").split("/");
                if (nextPool && nextStore)
                  void navigate({
                    to: "/artifacts/$pool/$store",
                    params: { pool: nextPool, store: nextStore },
                    search: {},
                  });
              }}
            />
          ) : undefined
        }
      />
      <div className="body flush">
        <Split
          name="artifacts"
          initial={0.42}
          left={left}
          right={
            search.file === undefined ? null : (
              <PreviewPane
                key={search.file}
                pool={pool}
                store={store}
                path={search.file}
                view={search.view}
                line={search.line}
                canDelete={canDelete}
                onView={(view) => void navigate({ search: (old) => ({ ...old, view }) as never, replace: true })}
                onClose={() =>
                  void navigate({
                    search: (old) => ({ ...old, file: undefined, view: undefined, line: undefined }) as never,
                  })
                }
                onDeleted={() => {
                  void navigate({
                    search: (old) => ({ ...old, file: undefined, view: undefined, line: undefined }) as never,
                  });
                  void refresh();
                }}
              />
            )
          }
        />
      </div>
    </>
  );
}

function Upload({
  pool,
  store,
  path,
  names,
  onDone,
}: {
  pool: string;
  store: string;
  path: string;
  names: ArtifactEntry[];
  onDone: () => void;
}) {
  const [state, setState] = useState<{ name: string; sentBytes: number; totalBytes: number } | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [clash, setClash] = useState<{ file: File; version: string | null } | null>(null);
  const stop = useRef<AbortController | null>(null);
  const put = async (file: File, headers: Record<string, string>) => {
    const target = path === "" ? file.name : `${path}/${file.name}`;
    stop.current = new AbortController();
    setError(null);
    setState({ name: file.name, sentBytes: 0, totalBytes: file.size });
    try {
      const type = file.type || "application/octet-stream";
      await upload<WrittenArtifact>(
        artifactUrls.content(pool, store, target),
        file,
        { ...headers, "content-type": type },
        (sentBytes) => setState({ name: file.name, sentBytes, totalBytes: file.size }),
        stop.current.signal,
      );
      toast(`${file.name} was written to ${store}.`);
      onDone();
    } finally {
      setState(null);
    }
  };
  const start = async (file: File | null) => {
    if (!file) return;
    const target = path === "" ? file.name : `${path}/${file.name}`;
    try {
      await put(file, { "if-none-match": "*" });
    } catch (caught) {
      if (caught instanceof DOMException) return;
      if (problemCode(caught) !== "ARTIFACT_EXISTS") return setError(caught);
      const listed = names.find((entry) => entry.path === target)?.version;
      const version =
        listed ??
        (await api.get<ArtifactStat>(artifactUrls.stat(pool, store, target)).catch(() => null))?.version ??
        null;
      setClash({ file, version });
    }
  };
  return (
    <>
      {state ? (
        <Button
          variant="default"
          rightSection={<IconX size={13} />}
          onClick={() => stop.current?.abort()}
          aria-label={`Stop the upload of ${state.name}`}
        >
          <span className="num">
            {state.totalBytes === 0 ? 0 : Math.round((state.sentBytes / state.totalBytes) * 100)} %
          </span>
        </Button>
      ) : (
        <FileButton onChange={(file) => void start(file)}>
          {(props) => (
            <Tooltip label="Upload a file into this folder">
              <ActionIcon variant="default" aria-label="Upload a file into this folder" {...props}>
                <IconUpload size={15} stroke={1.8} />
              </ActionIcon>
            </Tooltip>
          )}
        </FileButton>
      )}
      <Modal opened={error !== null} onClose={() => setError(null)} title={<b>The file was not written</b>} size={460}>
        {error !== null && <ProblemNote error={error} />}
      </Modal>
      <Confirm
        opened={clash !== null}
        onClose={() => setClash(null)}
        title={`Replace ${clash?.file.name ?? ""}?`}
        verb="Replace it"
        onConflict={onDone}
        act={() => put(clash!.file, clash!.version === null ? {} : { "if-match": `"${clash!.version}"` })}
      >
        A file of that name is there already. It is replaced only if it is still the version that you see now.
      </Confirm>
    </>
  );
}
