// The chosen file: what it is, who read it and how much left the network, and a viewer for what the agent made of it.
import { ActionIcon, Button, Menu, Skeleton, Tooltip } from "@mantine/core";
import {
  IconDots,
  IconDownload,
  IconEyeOff,
  IconInfoCircle,
  IconLink,
  IconPlayerPlay,
  IconPlugConnectedX,
  IconRocket,
  IconTrash,
  IconX,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { lazy, Suspense, useEffect, useState } from "react";
import { api, artifactUrls, isApiError, problemCode } from "../api/client.ts";
import { previewQuery, statQuery } from "../api/queries.ts";
import type { ArtifactPreview } from "../api/types.ts";
import { Confirm } from "../parts/confirm.tsx";
import { Copy, Id, useCopy } from "../parts/copy.tsx";
import { formatBytes, formatDuration, formatTime, formatCount } from "../parts/format.ts";
import { Empty, ProblemNote, isOffline } from "../parts/notes.tsx";
import { Tabs } from "../parts/page.tsx";
import { Ago } from "../parts/time.tsx";
import { toast } from "../shell/toasts.tsx";
import { part } from "../shell/upgrade.tsx";
import { ImageView } from "./image-view.tsx";
import { JsonView } from "./json-view.tsx";
import { LinesView } from "./lines-view.tsx";
import { MetricsView } from "./metrics-view.tsx";
import { metricsOf } from "./metrics.ts";
import { rememberLook } from "./looked.ts";
import { TableView } from "./table-view.tsx";

// Markdown alone is heavy; the others are a few KB and come with the page, so that nothing flickers.
const MarkdownView = lazy(() => part(import("./markdown-view.tsx")).then((m) => ({ default: m.MarkdownView })));

const MORE_ROWS = 5_000;

interface Props {
  pool: string;
  store: string;
  path: string;
  view?: string | undefined;
  line?: number | undefined;
  canDelete: boolean;
  onView: (view: string | undefined) => void;
  onClose: () => void;
  onDeleted: () => void;
}

export function PreviewPane({ pool, store, path, view, line, canDelete, onView, onClose, onDeleted }: Props) {
  const [rows, setRows] = useState<number | undefined>(undefined);
  const query = useQuery({ ...previewQuery(pool, store, path, rows), placeholderData: (old) => old });
  const client = useQueryClient();
  const [info, setInfo] = useState(false);
  const [ask, setAsk] = useState(false);
  const [, copy] = useCopy();
  const data = query.data;
  useEffect(() => {
    if (query.isSuccess) rememberLook();
  }, [query.isSuccess]);
  const name = path.slice(path.lastIndexOf("/") + 1);
  const preview = data?.preview;
  const metrics = preview?.type === "json" ? metricsOf(preview.value) : null;
  const tabs =
    preview?.type === "json"
      ? [
          ...(metrics ? [{ value: "metrics", word: "Metrics" }] : []),
          { value: "tree", word: "Tree" },
          { value: "raw", word: "Raw" },
        ]
      : preview?.type === "markdown"
        ? [
            { value: "page", word: "Page" },
            { value: "raw", word: "Source" },
          ]
        : [];
  const shown = tabs.some((tab) => tab.value === view) ? view! : (tabs[0]?.value ?? "");
  const reference = `${pool}/${store}/${path}`;
  const isPipeline = name.endsWith(".pipeline.json");
  const isModel = name.toLowerCase().endsWith(".onnx");
  return (
    <section
      className="pane"
      aria-label={`Preview of ${name}`}
      style={{ display: "flex", flexDirection: "column", minHeight: 0, height: "100%" }}
    >
      <div className="pv-head">
        <div className="grow">
          <div className="row" style={{ gap: 6 }}>
            <h2 className="clip" style={{ margin: 0, fontSize: 14, fontWeight: 620 }} title={path}>
              {name}
            </h2>
          </div>
          <div className="pv-meta">
            {data ? (
              <>
                <span className="num" title={`${formatCount(data.sizeBytes)} bytes`}>
                  {formatBytes(data.sizeBytes)}
                </span>
                <span>{data.mediaType}</span>
                {data.modifiedAt !== null && (
                  <span>
                    modified <Ago at={data.modifiedAt} />
                  </span>
                )}
                {preview?.type === "image" && preview.width && preview.height && (
                  <span className="num">
                    {preview.width} × {preview.height} px
                  </span>
                )}
              </>
            ) : (
              <span>{query.error ? "not read" : "reading…"}</span>
            )}
          </div>
        </div>
        <span className="row" style={{ gap: 4, flex: "none" }}>
          {isPipeline && (
            <Button
              leftSection={<IconPlayerPlay size={13} />}
              renderRoot={(props) => <Link to="/runs/new" search={{ pool, store, path }} {...props} />}
            >
              Start a run
            </Button>
          )}
          {isModel && (
            <Button
              leftSection={<IconRocket size={13} />}
              renderRoot={(props) => <Link to="/deployments/new" search={{ pool, store, path }} {...props} />}
            >
              Deploy
            </Button>
          )}
          <Tooltip label="Download">
            <ActionIcon
              component="a"
              href={artifactUrls.content(pool, store, path)}
              download={name}
              variant="default"
              aria-label={`Download ${name}`}
            >
              <IconDownload size={15} stroke={1.8} />
            </ActionIcon>
          </Tooltip>
          <Tooltip label="Details">
            <ActionIcon
              variant={info ? "light" : "default"}
              {...(info ? { color: "iris" } : {})}
              aria-label="Details"
              aria-pressed={info}
              onClick={() => setInfo(!info)}
            >
              <IconInfoCircle size={15} stroke={1.8} />
            </ActionIcon>
          </Tooltip>
          <Menu>
            <Menu.Target>
              <ActionIcon variant="default" aria-label={`More for ${name}`}>
                <IconDots size={15} />
              </ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Item
                leftSection={<IconLink size={15} />}
                onClick={() => {
                  copy(reference);
                  toast("The reference was copied.");
                }}
              >
                Copy the reference
              </Menu.Item>
              {canDelete && (
                <>
                  <Menu.Divider />
                  <Menu.Item color="red" leftSection={<IconTrash size={15} />} onClick={() => setAsk(true)}>
                    Delete
                  </Menu.Item>
                </>
              )}
            </Menu.Dropdown>
          </Menu>
          <ActionIcon variant="transparent" aria-label="Close the preview" onClick={onClose} data-escape>
            <IconX size={16} />
          </ActionIcon>
        </span>
      </div>
      {info && <Details pool={pool} store={store} path={path} data={data} reference={reference} />}
      {tabs.length > 1 && (
        <Tabs
          label="How to show it"
          tabs={tabs}
          value={shown}
          onChange={(next) => onView(next === tabs[0]?.value ? undefined : next)}
        />
      )}
      {query.error ? (
        isOffline(query.error) ? (
          <Empty
            icon={IconPlugConnectedX}
            title="The agent is not there to read it"
            action={
              <Button variant="default" onClick={() => void query.refetch()}>
                Try again
              </Button>
            }
          >
            {isApiError(query.error) ? query.error.problem.detail : ""} Contents stay in the customer's network and are
            read when somebody looks.
          </Empty>
        ) : (
          <div style={{ padding: 16 }}>
            <ProblemNote error={query.error} onRetry={() => void query.refetch()} />
          </div>
        )
      ) : !data || !preview ? (
        <div style={{ padding: 18 }} className="stack" role="status" aria-busy="true" aria-label="Reading">
          {[70, 92, 84, 60, 76, 40].map((width) => (
            <Skeleton key={width} height={11} width={`${width}%`} />
          ))}
        </div>
      ) : (
        <Suspense fallback={<div style={{ flex: 1 }} />}>
          {preview.type === "json" && shown === "metrics" && metrics ? (
            <MetricsView groups={metrics} />
          ) : preview.type === "json" && shown === "tree" ? (
            <JsonView value={preview.value} />
          ) : preview.type === "json" ? (
            <LinesView text={preview.text} line={line} />
          ) : preview.type === "markdown" ? (
            shown === "raw" ? (
              <LinesView text={preview.text} line={line} />
            ) : (
              <MarkdownView text={preview.text} />
            )
          ) : preview.type === "table" ? (
            <TableView table={preview} />
          ) : preview.type === "image" ? (
            <ImageView image={preview} name={name} />
          ) : preview.type === "log" ? (
            <LinesView lines={preview.lines} levels line={line} />
          ) : preview.type === "text" ? (
            <LinesView text={preview.text} line={line} />
          ) : (
            <Empty
              icon={IconEyeOff}
              title="No preview"
              action={
                <Button
                  variant="default"
                  component="a"
                  href={artifactUrls.content(pool, store, path)}
                  download={name}
                  leftSection={<IconDownload size={14} />}
                >
                  Download {formatBytes(data.sizeBytes)}
                </Button>
              }
            >
              {preview.reason}
            </Empty>
          )}
        </Suspense>
      )}
      {data && (
        <footer className="pv-foot">
          <span className="clip">
            <Link to="/agents/$id" params={{ id: data.agent.id }} className="link">
              {data.agent.name}
            </Link>{" "}
            read {formatBytes(data.readBytes)} from the store in {formatDuration(data.tookMs)} and sent{" "}
            {preview?.type === "none" ? "none of it." : "only what is shown here."}
          </span>
          {preview && "truncated" in preview && preview.truncated && (
            <span className="row" style={{ gap: 8, flex: "none" }}>
              <span className="tag warn">
                {preview.type === "table"
                  ? `first ${formatCount(preview.rows.length)}${preview.totalRows === null ? "" : ` of ${formatCount(preview.totalRows)}`} rows`
                  : preview.type === "log"
                    ? `${formatCount(preview.lines.length)}${preview.totalLines === null ? "" : ` of ${formatCount(preview.totalLines)}`} lines`
                    : "the beginning only"}
              </span>
              {preview.type === "table" && rows === undefined && (
                <Button
                  variant="default"
                  size="compact-xs"
                  loading={query.isFetching}
                  onClick={() => setRows(MORE_ROWS)}
                >
                  More rows
                </Button>
              )}
            </span>
          )}
        </footer>
      )}
      <Confirm
        opened={ask}
        onClose={() => setAsk(false)}
        title={`Delete ${name}?`}
        verb={`Delete ${name}`}
        onConflict={() => void client.invalidateQueries({ queryKey: ["artifacts", pool, store] })}
        act={async () => {
          await api.delete(
            artifactUrls.content(pool, store, path),
            data?.version ? { "if-match": `"${data.version}"` } : {},
          );
          toast(`${name} was deleted.`);
          onDeleted();
        }}
      >
        <span className="mono">{path}</span> is deleted from store {store} in the customer's network, if it is still the
        version shown here. Sallyport keeps no copy.
      </Confirm>
    </section>
  );
}

function Details({
  pool,
  store,
  path,
  data,
  reference,
}: {
  pool: string;
  store: string;
  path: string;
  data: ArtifactPreview | undefined;
  reference: string;
}) {
  const [wanted, setWanted] = useState(false);
  const stat = useQuery({ ...statQuery(pool, store, path, true), enabled: wanted });
  return (
    <div className="pv-details">
      <dl className="facts">
        <dt>Reference</dt>
        <dd>
          <Id value={reference} />
        </dd>
        {data && (
          <>
            <dt>Size</dt>
            <dd className="num">{formatCount(data.sizeBytes)} bytes</dd>
            <dt>Media type</dt>
            <dd>{data.mediaType}</dd>
            <dt>Modified</dt>
            <dd>{data.modifiedAt === null ? "unknown" : formatTime(data.modifiedAt)}</dd>
            <dt>Version</dt>
            <dd>{data.version === null ? "unknown" : <Id value={data.version} />}</dd>
          </>
        )}
        <dt>Digest</dt>
        <dd>
          {stat.data?.digest ? (
            <span className="row" style={{ gap: 4, alignItems: "flex-start" }}>
              <span className="mono" data-digest>
                {stat.data.digest}
              </span>
              <Copy text={stat.data.digest} label="Copy the digest" />
            </span>
          ) : stat.error ? (
            <ProblemNote error={stat.error} onRetry={() => void stat.refetch()} />
          ) : (
            <span className="row">
              <span className="faint">{stat.data ? "The agent gave none" : "not computed"}</span>
              <Button
                variant="default"
                size="compact-xs"
                loading={stat.isFetching}
                onClick={() => (problemCode(stat.error) ? void stat.refetch() : setWanted(true))}
              >
                Compute
              </Button>
              <span className="faint small">
                The agent reads all {data ? formatBytes(data.sizeBytes) : "of it"} and sends only the digest.
              </span>
            </span>
          )}
        </dd>
      </dl>
    </div>
  );
}
