// The frame of a page: its title in the window and in the head, its actions, its filter field, its tabs.
import { TextInput } from "@mantine/core";
import { IconSearch } from "@tabler/icons-react";
import { useEffect, useRef, useState, type ReactNode } from "react";

export function PageHead({
  title,
  crumbs,
  actions,
  after,
}: {
  title: string;
  crumbs?: ReactNode;
  actions?: ReactNode;
  after?: ReactNode;
}) {
  useEffect(() => {
    document.title = `${title} · Sallyport`;
  }, [title]);
  return (
    <header className="head">
      {crumbs && (
        <>
          {crumbs}
          <span className="sep" aria-hidden>
            /
          </span>
        </>
      )}
      <h1 className="clip">{title}</h1>
      {after}
      {actions && <div className="actions">{actions}</div>}
    </header>
  );
}

/** One of the facts under a head: a small label and what it is. */
export function Fact({ label, children, grow }: { label: string; children: ReactNode; grow?: boolean }) {
  return (
    <div style={grow ? { flex: "1 1 160px", minWidth: 0 } : undefined}>
      <div className="faint" style={{ fontSize: 11.5 }}>
        {label}
      </div>
      <div className={grow ? "row" : "row nowrap"}>{children}</div>
    </div>
  );
}

/** The page's filter: `/` jumps into it, Esc empties and then leaves it. */
export function Filter({
  value,
  onChange,
  label,
  className,
}: {
  value: string;
  onChange: (value: string) => void;
  label: string;
  className?: string;
}) {
  const field = useRef<HTMLInputElement>(null);
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  return (
    <TextInput
      ref={field}
      className={className ?? "filter"}
      data-page-filter
      aria-label={label}
      placeholder={label}
      value={text}
      leftSection={<IconSearch size={14} stroke={1.8} aria-hidden />}
      rightSection={text === "" ? <span className="kbd">/</span> : undefined}
      rightSectionPointerEvents="none"
      onChange={(event) => {
        setText(event.currentTarget.value);
        onChange(event.currentTarget.value);
      }}
      onKeyDown={(event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        if (text === "") field.current?.blur();
        else {
          setText("");
          onChange("");
        }
      }}
    />
  );
}

export interface ChipChoice {
  value: string;
  word: string;
  n?: number;
}
/** One of several, or all. */
export function Chips({
  choices,
  value,
  onChange,
  label,
}: {
  choices: ChipChoice[];
  value: string;
  onChange: (value: string) => void;
  label: string;
}) {
  return (
    <div className="chips" role="group" aria-label={label}>
      {choices.map((choice) => (
        <button
          key={choice.value}
          type="button"
          className="chip"
          aria-pressed={choice.value === value}
          onClick={() => onChange(choice.value)}
        >
          {choice.word}
          {choice.n !== undefined && <span className="n">{choice.n}</span>}
        </button>
      ))}
    </div>
  );
}

export interface TabChoice {
  value: string;
  word: ReactNode;
}
export function Tabs({
  tabs,
  value,
  onChange,
  label,
  end,
}: {
  tabs: TabChoice[];
  value: string;
  onChange: (value: string) => void;
  label: string;
  end?: ReactNode;
}) {
  return (
    <div className="tabs" role="tablist" aria-label={label}>
      {tabs.map((tab, at) => (
        <button
          key={tab.value}
          type="button"
          role="tab"
          className="tab"
          aria-selected={tab.value === value}
          tabIndex={tab.value === value ? 0 : -1}
          onClick={() => onChange(tab.value)}
          onKeyDown={(event) => {
            const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
            const next = tabs[(at + step + tabs.length) % tabs.length];
            if (step === 0 || next === undefined) return;
            event.preventDefault();
            onChange(next.value);
            const siblings = event.currentTarget.parentElement?.querySelectorAll<HTMLElement>("[role=tab]");
            siblings?.[(at + step + tabs.length) % tabs.length]?.focus();
          }}
        >
          {tab.word}
        </button>
      ))}
      {end && <div className="end">{end}</div>}
    </div>
  );
}

const SPLIT_KEY = "sallyport-split-";
/** Two panes and a grip between them; the share of the left one is remembered. */
export function Split({
  left,
  right,
  name,
  initial = 0.46,
}: {
  left: ReactNode;
  right: ReactNode | null;
  name: string;
  initial?: number;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [share, setShare] = useState(() => Number(localStorage.getItem(SPLIT_KEY + name)) || initial);
  const [drag, setDrag] = useState(false);
  const set = (next: number) => {
    const bounded = Math.min(0.75, Math.max(0.22, next));
    setShare(bounded);
    localStorage.setItem(SPLIT_KEY + name, String(bounded));
  };
  return (
    <div
      className="split"
      ref={box}
      style={{
        gridTemplateColumns: right === null ? "minmax(0, 1fr)" : `minmax(0, ${share}fr) 1px minmax(0, ${1 - share}fr)`,
        userSelect: drag ? "none" : undefined,
      }}
    >
      <div className="pane">{left}</div>
      {right !== null && (
        <>
          <div
            className={`grip${drag ? " drag" : ""}`}
            role="separator"
            aria-orientation="vertical"
            aria-label="Width of the panes"
            aria-valuenow={Math.round(share * 100)}
            tabIndex={0}
            onPointerDown={(event) => {
              event.currentTarget.setPointerCapture(event.pointerId);
              setDrag(true);
            }}
            onPointerMove={(event) => {
              const bounds = box.current?.getBoundingClientRect();
              if (drag && bounds) set((event.clientX - bounds.left) / bounds.width);
            }}
            onPointerUp={() => setDrag(false)}
            onKeyDown={(event) => {
              if (event.key === "ArrowLeft") set(share - 0.02);
              if (event.key === "ArrowRight") set(share + 0.02);
            }}
          />
          <div className="pane">{right}</div>
        </>
      )}
    </div>
  );
}
