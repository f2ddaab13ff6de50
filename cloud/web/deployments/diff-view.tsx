// What an apply changes, a line each, and what the agent's policy is known to refuse of it.
import { IconArrowRight, IconBan } from "@tabler/icons-react";
import type { DeploymentDiff } from "../api/types.ts";
import { Note } from "../parts/notes.tsx";
import { pathText, valueText, type SpecChange } from "./diff.ts";

const whole = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

export function ChangeList({ changes }: { changes: readonly SpecChange[] }) {
  return (
    <ul className="changes">
      {changes.map(({ path, from, to }) => (
        <li key={path}>
          <span className="dim" title={path}>
            {pathText(path)}
          </span>
          <span className="vals mono">
            {from === undefined ? (
              <span className="faint">none</span>
            ) : (
              <del title={whole(from)}>
                <span className="sr">from </span>
                {valueText(path, from)}
              </del>
            )}
            <IconArrowRight size={13} className="faint" aria-hidden />
            {to === undefined ? (
              <span className="faint">none</span>
            ) : (
              <ins title={whole(to)}>
                <span className="sr">to </span>
                {valueText(path, to)}
              </ins>
            )}
          </span>
        </li>
      ))}
    </ul>
  );
}

export function DiffView({ diff }: { diff: DeploymentDiff }) {
  if (diff.changes.length === 0 && diff.refusals.length === 0)
    return <span className="dim">Nothing to do: it is as asked for already.</span>;
  return (
    <div className="stack" style={{ gap: 10 }}>
      {diff.changes.length > 0 && <ChangeList changes={diff.changes} />}
      {diff.changes.length > 0 && (
        <span className="dim">
          {diff.newRevision
            ? `Makes revision ${diff.revision}: replicas are made anew, one after the other; the old ones serve until then.`
            : `Stays at revision ${diff.revision}: no replica is restarted.`}
        </span>
      )}
      {diff.refusals.map((each) => (
        <Note key={`${each.path} ${each.message}`} tone="bad" icon={IconBan} title={each.message}>
          <span className="mono">{each.path}</span>
        </Note>
      ))}
    </div>
  );
}
