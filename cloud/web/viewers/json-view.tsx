// A JSON value as a tree whose branches open on demand; long ones a page at a time.
import { useState } from "react";

const PAGE = 200;
const OPEN_DEPTH = 2;

export function JsonView({ value, openDepth = OPEN_DEPTH }: { value: unknown; openDepth?: number }) {
  return (
    <div className="jt" tabIndex={0} role="region" aria-label="JSON">
      <Node name={null} value={value} depth={0} openDepth={openDepth} />
    </div>
  );
}

const scalar = (value: unknown) =>
  typeof value === "string" ? (
    <span className="s">{JSON.stringify(value)}</span>
  ) : typeof value === "number" ? (
    <span className="n">{String(value)}</span>
  ) : (
    <span className="b">{String(value)}</span>
  );

function Node({
  name,
  value,
  depth,
  openDepth,
}: {
  name: string | null;
  value: unknown;
  depth: number;
  openDepth: number;
}) {
  const entries: [string, unknown][] | null = Array.isArray(value)
    ? value.map((each, n) => [String(n), each])
    : typeof value === "object" && value !== null
      ? Object.entries(value)
      : null;
  const [open, setOpen] = useState(depth < openDepth && (entries?.length ?? 0) <= 100);
  const [shown, setShown] = useState(PAGE);
  const key = name === null ? null : <span className="key">{name}: </span>;
  if (entries === null) {
    return (
      <div className="leaf">
        {key}
        {scalar(value)}
      </div>
    );
  }
  const array = Array.isArray(value);
  const word = array ? (entries.length === 1 ? "item" : "items") : entries.length === 1 ? "key" : "keys";
  return (
    <div>
      <button
        type="button"
        className="tw"
        aria-expanded={open}
        onClick={() => setOpen(!open)}
        disabled={entries.length === 0}
      >
        <span aria-hidden style={{ display: "inline-block", width: 14, opacity: entries.length === 0 ? 0 : 0.6 }}>
          {open ? "▾" : "▸"}
        </span>
        {key}
        {entries.length === 0 ? (
          array ? (
            "[]"
          ) : (
            "{}"
          )
        ) : (
          <span className="sum">
            {array ? "[" : "{"} {entries.length} {word} {array ? "]" : "}"}
          </span>
        )}
      </button>
      {open && entries.length > 0 && (
        <div className="kids">
          {entries.slice(0, shown).map(([childName, child]) => (
            <Node key={childName} name={childName} value={child} depth={depth + 1} openDepth={openDepth} />
          ))}
          {entries.length > shown && (
            <button
              type="button"
              className="tw"
              onClick={() => setShown(shown + PAGE)}
              style={{ color: "var(--accent)", paddingLeft: 14 }}
            >
              {entries.length - shown} more
            </button>
          )}
        </div>
      )}
    </div>
  );
}
