// Copying, also where the clipboard API is absent (plain http on another host).
import { ActionIcon, Tooltip } from "@mantine/core";
import { IconCheck, IconCopy } from "@tabler/icons-react";
import { useEffect, useState } from "react";

export async function copyText(text: string): Promise<boolean> {
  try {
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // Refused: fall through to the older way.
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  area.style.opacity = "0";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** True for a moment after `copy`. */
export function useCopy(): [copied: boolean, copy: (text: string) => void] {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 1500);
    return () => clearTimeout(timer);
  }, [copied]);
  return [copied, (text) => void copyText(text).then(setCopied)];
}

export function Copy({ text, label = "Copy", size = 20 }: { text: string; label?: string; size?: number }) {
  const [copied, copy] = useCopy();
  const Shape = copied ? IconCheck : IconCopy;
  return (
    <Tooltip label={copied ? "Copied" : label}>
      <ActionIcon
        size={size}
        aria-label={label}
        onClick={(event: React.MouseEvent) => {
          event.stopPropagation();
          event.preventDefault();
          copy(text);
        }}
      >
        <Shape size={Math.round(size * 0.66)} stroke={1.8} aria-hidden />
      </ActionIcon>
    </Tooltip>
  );
}

export function CopyLine({ text, label = "Copy the command" }: { text: string; label?: string }) {
  return (
    <div className="copyline">
      {/* A leading space keeps the line out of a shell's history: copied, not shown. */}
      <pre>{text.trimStart()}</pre>
      <Copy text={text} label={label} size={26} />
    </div>
  );
}

export function Id({ value, shown }: { value: string; shown?: string }) {
  return (
    <span className="row" style={{ gap: 4 }}>
      <span className="mono clip" title={value}>
        {shown ?? value}
      </span>
      <Copy text={value} label="Copy" />
    </span>
  );
}
