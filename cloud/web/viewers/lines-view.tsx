// Text or a log file as numbered lines; only those in view exist. Search walks the hits with Enter and Shift-Enter.
import { ActionIcon, TextInput, Tooltip } from "@mantine/core";
import { IconArrowDown, IconArrowUp, IconSearch, IconTextWrap } from "@tabler/icons-react";
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useMemo, useRef, useState } from "react";
import { formatCount } from "../parts/format.ts";
import { cutAt, findLines, levelOf } from "./lines.ts";

const LINE_PX = 19;
interface Line {
  n: number;
  text: string;
}

export function LinesView(props: {
  text?: string;
  lines?: readonly Line[];
  levels?: boolean;
  line?: number | undefined;
}) {
  const { text, levels } = props;
  const lines = useMemo<readonly Line[]>(
    () =>
      props.lines ??
      (text ?? "")
        .replace(/\n$/, "")
        .split("\n")
        .map((each, n) => ({ n: n + 1, text: each.replace(/\r$/, "") })),
    [props.lines, text],
  );
  const [needle, setNeedle] = useState("");
  const [hit, setHit] = useState(0);
  const [wrap, setWrap] = useState(false);
  const scroller = useRef<HTMLDivElement>(null);
  const hits = useMemo(() => findLines(lines, needle), [lines, needle]);
  const virtual = useVirtualizer({
    count: lines.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => LINE_PX,
    overscan: 30,
  });
  useEffect(() => virtual.measure(), [wrap, virtual]);
  useEffect(() => setHit(0), [needle]);
  useEffect(() => {
    const at = hits[hit];
    if (at !== undefined) virtual.scrollToIndex(at, { align: "center" });
  }, [hit, hits, virtual]);
  useEffect(() => {
    if (props.line === undefined) return;
    const at = lines.findIndex((each) => each.n >= props.line!);
    if (at >= 0) virtual.scrollToIndex(at, { align: "center" });
    // oxlint-disable-next-line react/exhaustive-deps -- the address decides once, then the reader
  }, []);
  const longest = useMemo(() => lines.reduce((most, each) => Math.max(most, each.text.length), 0), [lines]);
  return (
    <>
      <div className="logbar">
        <SearchField needle={needle} onNeedle={setNeedle} hits={hits.length} hit={hit} onHit={setHit} />
        <span style={{ marginLeft: "auto" }} className="faint small num">
          {formatCount(lines.length)} {lines.length === 1 ? "line" : "lines"}
        </span>
        <WrapButton wrap={wrap} onWrap={setWrap} />
      </div>
      <div className={`lines${wrap ? " wrap" : ""}`} ref={scroller} tabIndex={0} role="region" aria-label="Text">
        <div
          style={{
            height: virtual.getTotalSize(),
            position: "relative",
            minWidth: wrap ? undefined : `calc(${longest}ch + 90px)`,
          }}
        >
          {virtual.getVirtualItems().map((item) => {
            const line = lines[item.index]!;
            const level = levels ? levelOf(line.text) : null;
            return (
              <div
                key={item.key}
                ref={wrap ? virtual.measureElement : undefined}
                data-index={item.index}
                className={`ln${level ? ` ${level}` : ""}${line.n === props.line ? " target" : ""}`}
                style={{ transform: `translateY(${item.start}px)` }}
              >
                <span className="no">{line.n}</span>
                <span className="tx">
                  <Marked text={line.text} needle={needle} here={hits[hit] === item.index} />
                </span>
              </div>
            );
          })}
        </div>
      </div>
    </>
  );
}

export function Marked({ text, needle, here }: { text: string; needle: string; here: boolean }) {
  if (needle === "") return text === "" ? " " : text;
  return cutAt(text, needle).map((part, n) =>
    n % 2 === 1 ? (
      <mark key={n} className={here ? "here" : undefined}>
        {part}
      </mark>
    ) : (
      part
    ),
  );
}

export function WrapButton({ wrap, onWrap }: { wrap: boolean; onWrap: (wrap: boolean) => void }) {
  return (
    <Tooltip label={wrap ? "Do not wrap long lines" : "Wrap long lines"}>
      <ActionIcon
        aria-label="Wrap long lines"
        aria-pressed={wrap}
        variant={wrap ? "light" : "subtle"}
        color={wrap ? "iris" : "gray"}
        onClick={() => onWrap(!wrap)}
      >
        <IconTextWrap size={16} stroke={1.7} />
      </ActionIcon>
    </Tooltip>
  );
}

export function SearchField({
  needle,
  onNeedle,
  hits,
  hit,
  onHit,
}: {
  needle: string;
  onNeedle: (needle: string) => void;
  hits: number;
  hit: number;
  onHit: (hit: number) => void;
}) {
  const step = (by: number) => hits > 0 && onHit((hit + by + hits) % hits);
  return (
    <>
      <TextInput
        w={210}
        aria-label="Search in the text"
        placeholder="Search"
        leftSection={<IconSearch size={13} stroke={1.8} aria-hidden />}
        value={needle}
        onChange={(event) => onNeedle(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter") {
            event.preventDefault();
            step(event.shiftKey ? -1 : 1);
          }
          if (event.key === "Escape") {
            event.stopPropagation();
            onNeedle("");
          }
        }}
      />
      {needle !== "" && (
        <>
          <span className="small dim num" role="status">
            {hits === 0 ? "no hit" : `${hit + 1} of ${formatCount(hits)}`}
          </span>
          <ActionIcon size={24} aria-label="Hit before" disabled={hits === 0} onClick={() => step(-1)}>
            <IconArrowUp size={14} />
          </ActionIcon>
          <ActionIcon size={24} aria-label="Next hit" disabled={hits === 0} onClick={() => step(1)}>
            <IconArrowDown size={14} />
          </ActionIcon>
        </>
      )}
    </>
  );
}
