// What a page says when there is nothing, not yet, or no more: problems with their fix, waiting reasons, empty states.
import { Button, Skeleton } from "@mantine/core";
import { IconAlertTriangle, IconCircleX, IconHourglass, IconPlugConnectedX, type Icon } from "@tabler/icons-react";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { isApiError } from "../api/client.ts";
import type { CommandError, Problem, Waiting } from "../api/types.ts";
import { Copy } from "./copy.tsx";

/** Codes that a reader meets as a state of the world rather than as a mistake. */
const OFFLINE = new Set(["AGENT_OFFLINE", "LINK_LOST", "AGENT_DRAINING", "AGENT_PAUSED", "NO_ANSWER"]);
export const isOffline = (error: unknown): boolean => isApiError(error) && OFFLINE.has(error.problem.code);

/** A sentence of the API: what stands between backticks is code. */
export const Words = ({ text }: { text: string }) =>
  text.split("`").map((part, n) => (n % 2 === 1 ? <code key={`${n} ${part}`}>{part}</code> : part));

/** The rule of the agent's policy that refused, where one did. */
function Rule({ details }: { details: Record<string, unknown> | undefined }) {
  const rule = details?.["rule"];
  return typeof rule === "string" ? (
    <span>
      rule <span className="mono">{rule}</span>
    </span>
  ) : null;
}

function problemOf(error: unknown): Problem {
  if (isApiError(error)) return error.problem;
  const detail = error instanceof Error ? error.message : String(error);
  return {
    type: "about:blank",
    title: "Fault of the page",
    status: 0,
    detail,
    instance: "",
    code: "PAGE_FAULT",
    requestId: "",
    fix: "Load the page again.",
  };
}

export function ProblemNote({ error, onRetry }: { error: unknown; onRetry?: (() => void) | undefined }) {
  const problem = problemOf(error);
  const offline = OFFLINE.has(problem.code);
  const Shape = offline ? IconPlugConnectedX : IconCircleX;
  const all = [
    problem.detail,
    problem.fix,
    `code: ${problem.code}`,
    problem.requestId && `request id: ${problem.requestId}`,
  ]
    .filter(Boolean)
    .join("\n");
  return (
    <div className={`note ${offline ? "warn" : "bad"}`} role="alert">
      <Shape size={18} stroke={1.8} aria-hidden />
      <div className="note-body">
        <b>
          <Words text={problem.detail || problem.title} />
        </b>
        {problem.fix && (
          <div className="fix">
            <Words text={problem.fix} />
          </div>
        )}
        {problem.errors && problem.errors.length > 0 && (
          <ul style={{ margin: "6px 0 0", paddingLeft: 18 }}>
            {problem.errors.map((each) => (
              <li key={`${each.path} ${each.message}`}>
                <span className="mono">{each.path || "(body)"}</span>: {each.message}
              </li>
            ))}
          </ul>
        )}
        <div className="meta">
          <span className="mono">{problem.code}</span>
          <Rule details={problem.details} />
          {problem.requestId && (
            <span>
              request <span className="mono">{problem.requestId}</span>
            </span>
          )}
          <Copy text={all} label="Copy the error" />
          {onRetry && (
            <Button variant="default" size="compact-xs" onClick={onRetry}>
              Try again
            </Button>
          )}
        </div>
      </div>
    </div>
  );
}

/** An error that is part of a record: of a step, a run, a command. */
export function ErrorNote({ error }: { error: CommandError }) {
  return (
    <div className="note bad">
      <IconCircleX size={18} stroke={1.8} aria-hidden />
      <div className="note-body">
        <b>
          <Words text={error.message} />
        </b>
        {error.fix && (
          <div className="fix">
            <Words text={error.fix} />
          </div>
        )}
        <div className="meta">
          <span className="mono">{error.code}</span>
          <Rule details={error.details} />
          <Copy
            text={[error.message, error.fix, `code: ${error.code}`, error.details && JSON.stringify(error.details)]
              .filter(Boolean)
              .join("\n")}
            label="Copy the error"
          />
        </div>
      </div>
    </div>
  );
}

export function WaitingNote({ waiting }: { waiting: Waiting }) {
  return (
    <div className="note warn" role="status">
      <IconHourglass size={18} stroke={1.8} aria-hidden />
      <div className="note-body">
        <b>{waiting.text}</b>
        {waiting.fix && (
          <div className="fix">
            <Words text={waiting.fix} />
          </div>
        )}
        {waiting.queue && waiting.queue.holders.length > 0 && (
          <div className="fix">
            The slots are held by
            <ul style={{ margin: "2px 0 0", paddingLeft: 18 }}>
              {waiting.queue.holders.map((holder) => (
                <li key={holder.command}>
                  <Link to="/runs/$id" params={{ id: holder.run }} className="link">
                    {holder.text}
                  </Link>
                </li>
              ))}
            </ul>
          </div>
        )}
        <div className="meta">
          <span className="mono">{waiting.code}</span>
        </div>
      </div>
    </div>
  );
}

export function Note({
  tone,
  icon: Shape = IconAlertTriangle,
  title,
  children,
}: {
  tone: "ok" | "warn" | "bad" | "run";
  icon?: Icon;
  title: ReactNode;
  children?: ReactNode;
}) {
  return (
    <div className={`note ${tone}`} role="status">
      <Shape size={18} stroke={1.8} aria-hidden />
      <div className="note-body">
        <b>{title}</b>
        {children && <div className="fix">{children}</div>}
      </div>
    </div>
  );
}

export function Empty({
  icon: Shape,
  title,
  children,
  action,
}: {
  icon: Icon;
  title: string;
  children?: ReactNode;
  action?: ReactNode;
}) {
  return (
    <div className="empty">
      <Shape size={32} stroke={1.3} aria-hidden />
      <h3>{title}</h3>
      {children && <p>{children}</p>}
      {action && <div className="do">{action}</div>}
    </div>
  );
}

export function RowSkeletons({ rows = 8, height = 40 }: { rows?: number; height?: number }) {
  return (
    <div aria-busy="true" aria-label="Loading" role="status">
      {Array.from({ length: rows }, (_, n) => (
        <div
          key={n}
          style={{
            height,
            display: "flex",
            alignItems: "center",
            gap: 24,
            padding: "0 var(--pad)",
            borderBottom: "1px solid var(--line)",
          }}
        >
          <Skeleton height={10} width={`${22 + ((n * 7) % 12)}%`} />
          <Skeleton height={10} width="12%" />
          <Skeleton height={10} width="18%" />
          <Skeleton height={10} width="8%" ml="auto" />
        </div>
      ))}
    </div>
  );
}
