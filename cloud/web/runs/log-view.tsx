// A log of a step or a replica, live: follows while the reader is at the bottom, and leaves them alone when they are not.
import { ActionIcon, Button, Tooltip } from "@mantine/core";
import { IconArrowDown, IconClock, IconDownload, IconPlugConnectedX } from "@tabler/icons-react";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "react";
import { isApiError } from "../api/client.ts";
import { formatClockMs, formatCount, plural } from "../parts/format.ts";
import { Empty, ProblemNote } from "../parts/notes.tsx";
import { copyText } from "../parts/copy.tsx";
import { findLines } from "../viewers/lines.ts";
import { Marked, SearchField, WrapButton } from "../viewers/lines-view.tsx";
import { toast } from "../shell/toasts.tsx";
import { followNext, missingBefore } from "./log-model.ts";
import { downloadUrl, useLogSource, type LogAddress } from "./log-source.ts";

const LINE_PX = 19;

interface Props {
  log: LogAddress;
  live: boolean;
  /** The agent does not answer: what is shown is not known to be the newest. */
  silent: boolean;
  line: number | undefined;
  onLine: (line: number | undefined) => void;
}

export function LogView({ log, live, silent, line, onLine }: Props) {
  const source = useLogSource(log, live, line);
  const { lines } = source.log;
  const [following, setFollowing] = useState(line === undefined);
  const [wrap, setWrap] = useState(false);
  const [times, setTimes] = useState(false);
  const [needle, setNeedle] = useState("");
  const [hit, setHit] = useState(0);
  const scroller = useRef<HTMLDivElement>(null);
  const byReader = useRef(0);
  const hits = useMemo(() => findLines(lines, needle), [lines, needle]);
  const earlier = missingBefore(source.log);
  const head = earlier > 0 ? 1 : 0;
  const virtual = useVirtualizer({
    count: lines.length + head,
    getScrollElement: () => scroller.current,
    estimateSize: () => LINE_PX,
    overscan: 30,
  });
  useEffect(() => virtual.measure(), [wrap, virtual]);

  // Follow.
  useLayoutEffect(() => {
    if (following && lines.length > 0) virtual.scrollToIndex(lines.length - 1 + head, { align: "end" });
  }, [lines, following, head, virtual, wrap]);

  // The line of the address, once it is there.
  const jumped = useRef<number | undefined>(undefined);
  useEffect(() => {
    if (line === undefined || jumped.current === line) return;
    const at = lines.findIndex((each) => each.lastSeq >= line);
    if (at < 0) return;
    jumped.current = line;
    setFollowing(followNext(following, { type: "jumped" }));
    virtual.scrollToIndex(at + head, { align: "center" });
  }, [line, lines, head, following, virtual]);

  useEffect(() => setHit(0), [needle]);
  const goTo = (next: number) => {
    setHit(next);
    const at = hits[next];
    if (at === undefined) return;
    setFollowing(followNext(following, { type: "jumped" }));
    virtual.scrollToIndex(at + head, { align: "center" });
  };
  const longest = useMemo(() => lines.reduce((most, each) => Math.max(most, each.text.length), 0), [lines]);

  if (source.state === "failed") {
    return (
      <div style={{ padding: 16 }}>
        <ProblemNote error={source.error} onRetry={source.retry} />
      </div>
    );
  }
  return (
    <>
      <div className="logbar">
        <SearchField needle={needle} onNeedle={setNeedle} hits={hits.length} hit={hit} onHit={goTo} />
        <span style={{ marginLeft: "auto" }} className="faint small num" role="status">
          {source.state === "cut" ? (
            <span className="status tone-warn">
              <IconPlugConnectedX size={14} aria-hidden /> Cut off, trying again
            </span>
          ) : live && !silent && source.state === "reading" ? (
            <span className="status tone-run">
              <span className="pulse" aria-hidden>
                ●
              </span>
              Live
            </span>
          ) : null}
        </span>
        {source.log.lastSeq > 0 && <span className="faint small num nowrap">{plural(source.log.lastSeq, "line")}</span>}
        <Tooltip label={times ? "Hide the times" : "Show the times"}>
          <ActionIcon
            aria-label="Times"
            aria-pressed={times}
            variant={times ? "light" : "subtle"}
            color={times ? "iris" : "gray"}
            onClick={() => setTimes(!times)}
          >
            <IconClock size={16} stroke={1.7} />
          </ActionIcon>
        </Tooltip>
        <WrapButton wrap={wrap} onWrap={setWrap} />
        <Tooltip label="Download the log">
          <ActionIcon component="a" href={downloadUrl(log)} download={log.file} aria-label="Download the log">
            <IconDownload size={16} stroke={1.7} />
          </ActionIcon>
        </Tooltip>
      </div>
      <div style={{ position: "relative", flex: 1, minHeight: 0, display: "flex", flexDirection: "column" }}>
        {lines.length === 0 && (source.state === "ended" || (source.state === "reading" && live)) ? (
          source.state === "ended" ? (
            <Empty icon={IconClock} title={`This ${log.one} wrote no log`} />
          ) : (
            <Empty icon={IconClock} title="Nothing was written yet">
              Lines appear here as the {log.writer} writes them.
            </Empty>
          )
        ) : lines.length === 0 ? (
          <Empty icon={IconClock} title={source.state === "cut" ? "The agent is not there to ask" : "Reading…"}>
            {source.state === "cut"
              ? `${isApiError(source.error) ? `${source.error.problem.detail} ` : ""}Logs stay with the agent; they show again when it is back.`
              : undefined}
          </Empty>
        ) : (
          <div
            className={`lines${wrap ? " wrap" : ""}`}
            ref={scroller}
            tabIndex={0}
            role="log"
            aria-label={`Log of ${log.name}`}
            aria-live="off"
            onWheel={() => (byReader.current = performance.now())}
            onPointerDown={() => (byReader.current = performance.now() + 60_000)}
            onPointerUp={() => (byReader.current = performance.now())}
            onKeyDown={(event) => {
              byReader.current = performance.now();
              if (event.key === "End") setFollowing(true);
            }}
            onScroll={(event) => {
              const box = event.currentTarget;
              const recent = performance.now() - byReader.current < 600;
              setFollowing((old) =>
                followNext(old, {
                  type: "scrolled",
                  top: box.scrollTop,
                  height: box.scrollHeight,
                  view: box.clientHeight,
                  byReader: recent,
                }),
              );
            }}
          >
            <div
              style={{
                height: virtual.getTotalSize(),
                position: "relative",
                minWidth: wrap ? undefined : `calc(${longest}ch + ${times ? 190 : 90}px)`,
              }}
            >
              {virtual.getVirtualItems().map((item) => {
                const style = { transform: `translateY(${item.start}px)` };
                if (item.index < head) {
                  return (
                    <div key="earlier" className="ln" style={style}>
                      <span className="no" />
                      <button
                        type="button"
                        className="link earlier"
                        onClick={() => void source.loadEarlier()}
                        disabled={source.loadingEarlier}
                      >
                        {source.loadingEarlier ? "Loading…" : `Load earlier lines (${formatCount(earlier)} more)`}
                      </button>
                    </div>
                  );
                }
                const at = item.index - head;
                const each = lines[at]!;
                const tone = each.kind === "gap" ? "gap" : `${each.kind}${each.level ? ` ${each.level}` : ""}`;
                return (
                  <div
                    key={item.key}
                    ref={wrap ? virtual.measureElement : undefined}
                    data-index={item.index}
                    className={`ln ${tone}${line !== undefined && each.seq <= line && each.lastSeq >= line ? " target" : ""}`}
                    style={style}
                  >
                    <a
                      className="no"
                      href={`?${new URLSearchParams({ ...Object.fromEntries(new URLSearchParams(location.search)), line: String(each.seq) })}`}
                      aria-label={`Link to line ${each.seq}`}
                      tabIndex={-1}
                      onClick={(event) => {
                        if (event.ctrlKey || event.metaKey) return;
                        event.preventDefault();
                        const next = line === each.seq ? undefined : each.seq;
                        jumped.current = next;
                        onLine(next);
                        if (next !== undefined) {
                          const url = new URL(location.href);
                          url.searchParams.set("line", String(next));
                          void copyText(url.href).then((done) => done && toast(`The link to line ${next} was copied.`));
                        }
                      }}
                    >
                      {each.kind === "gap" ? "…" : each.seq}
                    </a>
                    {times && <span className="ts">{formatClockMs(each.ts)}</span>}
                    <span className="tx">
                      <Marked text={each.text} needle={needle} here={hits[hit] === at} />
                    </span>
                  </div>
                );
              })}
            </div>
          </div>
        )}
        {live && !following && lines.length > 0 && (
          <Button
            className="follow-off"
            size="compact-sm"
            leftSection={<IconArrowDown size={14} />}
            onClick={() => setFollowing(followNext(following, { type: "button", on: true }))}
          >
            Follow
          </Button>
        )}
      </div>
    </>
  );
}
