// The table of every list: only the rows in view exist, so ten thousand cost what forty do. Arrows or j/k move,
// Enter opens. The first column holds a real link, for the middle mouse button and for screen readers.
import { useVirtualizer } from "@tanstack/react-virtual";
import { useEffect, useMemo, useRef, useState, type ReactNode } from "react";

export interface Column<T> {
  key: string;
  title: ReactNode;
  /** A CSS grid track: `120px`, `minmax(160px, 2fr)`. */
  width: string;
  right?: boolean;
  render: (row: T) => ReactNode;
  /** Left out below 1020 px of window width. */
  wide?: boolean;
}

interface Props<T> {
  label: string;
  columns: Column<T>[];
  rows: T[];
  rowKey: (row: T) => string;
  onOpen: (row: T) => void;
  selected?: string | null | undefined;
  rowHeight?: number;
  /** Moving the cursor opens at once: for lists with a preview beside them. */
  openOnMove?: boolean;
  onBack?: () => void;
  onEnd?: (() => void) | undefined;
  footer?: ReactNode;
}

const NARROW = "(max-width: 1020px)";
export function useNarrow(): boolean {
  const [narrow, setNarrow] = useState(() => matchMedia(NARROW).matches);
  useEffect(() => {
    const media = matchMedia(NARROW);
    const listen = () => setNarrow(media.matches);
    media.addEventListener("change", listen);
    return () => media.removeEventListener("change", listen);
  }, []);
  return narrow;
}

/** True where typing goes into a field, so that single letters are not commands. */
export function isTyping(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))
  );
}

export function DataTable<T>(props: Props<T>) {
  const { rows, rowKey, onOpen, selected, rowHeight = 40, onEnd } = props;
  const narrow = useNarrow();
  const columns = useMemo(() => props.columns.filter((column) => !(narrow && column.wide)), [props.columns, narrow]);
  const template = columns.map((column) => column.width).join(" ");
  const scroller = useRef<HTMLDivElement>(null);
  const [cursor, setCursor] = useState(-1);
  const [byKeys, setByKeys] = useState(false);
  const virtual = useVirtualizer({
    count: rows.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => rowHeight,
    overscan: 12,
    getItemKey: (index) => {
      const row = rows[index];
      return row === undefined ? index : rowKey(row);
    },
  });
  const items = virtual.getVirtualItems();
  const last = items.at(-1)?.index ?? 0;
  useEffect(() => {
    if (onEnd && rows.length > 0 && last >= rows.length - 5) onEnd();
  }, [last, rows.length, onEnd]);

  const selectedIndex = selected == null ? -1 : rows.findIndex((row) => rowKey(row) === selected);
  const at = cursor >= 0 && cursor < rows.length ? cursor : selectedIndex;

  // A link from elsewhere may choose a row far down.
  const shown = useRef<string | null>(null);
  useEffect(() => {
    if (selected == null || selectedIndex < 0 || shown.current === selected) return;
    shown.current = selected;
    virtual.scrollToIndex(selectedIndex, { align: "auto" });
  }, [selected, selectedIndex, virtual]);

  const keys = useRef<(event: KeyboardEvent) => void>(() => undefined);
  keys.current = (event) => {
    if (event.defaultPrevented || isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("[role=dialog]")) return;
    const inside = scroller.current?.contains(event.target as Node) || event.target === document.body;
    const move = (next: number) => {
      if (rows.length === 0) return;
      const index = Math.min(rows.length - 1, Math.max(0, next));
      event.preventDefault();
      setByKeys(true);
      setCursor(index);
      virtual.scrollToIndex(index, { align: "auto" });
      const row = rows[index];
      if (props.openOnMove && row !== undefined) onOpen(row);
    };
    if (event.key === "j" || (inside && event.key === "ArrowDown")) move(at + 1);
    else if (event.key === "k" || (inside && event.key === "ArrowUp")) move(at < 0 ? 0 : at - 1);
    else if (inside && event.key === "Home") move(0);
    else if (inside && event.key === "End") move(rows.length - 1);
    else if (inside && (event.key === "Enter" || event.key === "ArrowRight" || event.key === "l")) {
      const row = rows[at];
      if (row === undefined || (event.target as HTMLElement).tagName === "A") return;
      event.preventDefault();
      onOpen(row);
    } else if (
      props.onBack &&
      inside &&
      (event.key === "Backspace" || event.key === "ArrowLeft" || event.key === "h")
    ) {
      event.preventDefault();
      setCursor(-1);
      props.onBack();
    }
  };
  useEffect(() => {
    const listen = (event: KeyboardEvent) => keys.current(event);
    window.addEventListener("keydown", listen);
    return () => window.removeEventListener("keydown", listen);
  }, []);

  return (
    <div className="table">
      <div
        className="t-scroll"
        ref={scroller}
        tabIndex={0}
        role="grid"
        aria-label={props.label}
        aria-rowcount={rows.length}
      >
        <div className="t-head" role="row" style={{ gridTemplateColumns: template }}>
          {columns.map((column) => (
            <div key={column.key} role="columnheader" className={column.right ? "right" : undefined}>
              {column.title}
            </div>
          ))}
        </div>
        <div style={{ height: virtual.getTotalSize(), position: "relative" }} role="rowgroup">
          {items.map((item) => {
            const row = rows[item.index];
            if (row === undefined) return null;
            return (
              // oxlint-disable-next-line jsx-a11y/click-events-have-key-events -- keys are handled by the grid
              <div
                key={item.key}
                role="row"
                aria-rowindex={item.index + 1}
                aria-selected={rowKey(row) === selected}
                className={`t-row${item.index === at ? " cursor" : ""}${item.index === at && byKeys ? " keys" : ""}`}
                style={{ height: rowHeight, transform: `translateY(${item.start}px)`, gridTemplateColumns: template }}
                onClick={(event) => {
                  if ((event.target as HTMLElement).closest("a, button")) return;
                  setByKeys(false);
                  setCursor(item.index);
                  onOpen(row);
                }}
              >
                {columns.map((column) => (
                  <div key={column.key} role="gridcell" className={`t-cell${column.right ? " right" : ""}`}>
                    {column.render(row)}
                  </div>
                ))}
              </div>
            );
          })}
        </div>
        {props.footer && <div className="t-more">{props.footer}</div>}
      </div>
    </div>
  );
}
