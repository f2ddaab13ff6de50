// The page of one thing as long as it is not there: what is wrong, or that it comes.
import { Skeleton } from "@mantine/core";
import type { ReactNode } from "react";
import { ProblemNote } from "./notes.tsx";
import { PageHead } from "./page.tsx";

export function Awaited({
  thing,
  crumbs,
  query,
  heights = [36, 160],
}: {
  /** What is asked for, as a title. */
  thing: string;
  crumbs: ReactNode;
  query: { error: unknown; refetch: () => unknown };
  /** Of what will be there, px. */
  heights?: readonly number[];
}) {
  return (
    <>
      <PageHead title={query.error ? thing : "…"} crumbs={crumbs} />
      <div className="body">
        {query.error ? (
          <div className="narrow">
            <ProblemNote error={query.error} onRetry={() => void query.refetch()} />
          </div>
        ) : (
          <div className="stack">
            {heights.map((height) => (
              <Skeleton key={height} height={height} />
            ))}
          </div>
        )}
      </div>
    </>
  );
}
