// Rows of a table file: only those in view exist; the head stays; numbers stand to the right.
import { useVirtualizer } from "@tanstack/react-virtual";
import { useMemo, useRef } from "react";
import type { PreviewOf } from "../api/types.ts";

const ROW_PX = 27;
const CHAR_PX = 7.2;

export function TableView({ table }: { table: PreviewOf<"table"> }) {
  const scroller = useRef<HTMLDivElement>(null);
  const widths = useMemo(
    () =>
      table.columns.map((column, n) => {
        let longest = Math.max(column.name.length * 1.05, column.kind.length * 0.95);
        for (const row of table.rows.slice(0, 100)) longest = Math.max(longest, String(row[n] ?? "").length);
        return Math.round(Math.min(360, Math.max(52, longest * CHAR_PX + 26)));
      }),
    [table],
  );
  const noWidth = Math.max(40, String(table.rows.length).length * 8 + 24);
  const rows = useVirtualizer({
    count: table.rows.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => ROW_PX,
    overscan: 20,
  });
  // Wide tables (a picture per row has a column per pixel) are virtual both ways.
  const cols = useVirtualizer({
    horizontal: true,
    count: widths.length,
    getScrollElement: () => scroller.current,
    estimateSize: (n) => widths[n] ?? 80,
    overscan: 6,
    scrollMargin: noWidth,
  });
  const shown = cols.getVirtualItems();
  const total = noWidth + widths.reduce((sum, width) => sum + width, 0);
  const cell = (n: number, start: number) => ({
    position: "absolute" as const,
    top: 0,
    left: start,
    width: widths[n],
    height: "100%",
  });
  return (
    <div
      className="dt"
      ref={scroller}
      tabIndex={0}
      role="table"
      aria-label="Rows"
      aria-rowcount={table.totalRows ?? table.rows.length}
      aria-colcount={table.columns.length}
    >
      <div className="dt-in" style={{ width: total, minWidth: "100%" }}>
        <div className="dt-head" role="row" style={{ height: 43, display: "block" }}>
          <div
            className="no"
            style={{ width: noWidth, height: "100%", left: 0, position: "sticky", zIndex: 2, float: "left" }}
          />
          {shown.map((item) => {
            const column = table.columns[item.index]!;
            return (
              <div
                key={item.key}
                role="columnheader"
                className={column.kind === "number" ? "right" : undefined}
                style={cell(item.index, item.start)}
                title={`${column.name} (${column.kind})`}
              >
                {column.name}
                <div className="kind">{column.kind}</div>
              </div>
            );
          })}
        </div>
        <div style={{ height: rows.getTotalSize(), position: "relative" }} role="rowgroup">
          {rows.getVirtualItems().map((item) => {
            const row = table.rows[item.index]!;
            return (
              <div
                key={item.key}
                role="row"
                className="dt-row"
                style={{ transform: `translateY(${item.start}px)`, width: total, minWidth: "100%", display: "block" }}
              >
                <div className="no" style={{ width: noWidth, height: "100%" }}>
                  {item.index + 1}
                </div>
                {shown.map((column) => {
                  const value = row[column.index];
                  const kind = table.columns[column.index]!.kind;
                  return (
                    <div
                      key={column.key}
                      role="cell"
                      className={`${kind === "number" ? "right" : ""}${value === null || value === undefined ? " null" : ""}`}
                      style={cell(column.index, column.start)}
                      title={typeof value === "string" && value.length > 30 ? value : undefined}
                    >
                      {value === null || value === undefined ? "–" : String(value)}
                    </div>
                  );
                })}
              </div>
            );
          })}
        </div>
      </div>
    </div>
  );
}
