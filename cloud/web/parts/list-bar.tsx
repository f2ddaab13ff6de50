// The bar above a list: a filter, the states that its items have, and how many are shown of how many.
import type { ReactNode } from "react";
import { plural } from "./format.ts";
import { Chips, Filter } from "./page.tsx";
import type { Look } from "./status.tsx";

export function ListBar<S extends string>({
  items,
  shown,
  thing,
  filter,
  search,
  looks,
  onChange,
  after,
}: {
  items: readonly { state: S }[];
  shown: number;
  /** What one item is called. */
  thing: string;
  /** Says what the filter looks at. */
  filter: string;
  search: { q?: string | undefined; state?: string | undefined };
  /** In the order of the chips. */
  looks: Readonly<Record<S, Look>>;
  onChange: (change: Record<string, string | undefined>) => void;
  after?: ReactNode;
}) {
  const states = (Object.keys(looks) as S[]).filter((state) => items.some((item) => item.state === state));
  return (
    <div className="toolbar">
      <Filter label={filter} value={search.q ?? ""} onChange={(text) => onChange({ q: text || undefined })} />
      <Chips
        label="State"
        value={search.state ?? ""}
        onChange={(state) => onChange({ state: state || undefined })}
        choices={[
          { value: "", word: "All" },
          ...states.map((state) => ({
            value: state,
            word: looks[state].word,
            n: items.filter((item) => item.state === state).length,
          })),
        ]}
      />
      <span className="total">
        {shown === items.length ? plural(items.length, thing) : `${shown} of ${plural(items.length, thing)}`}
        {after}
      </span>
    </div>
  );
}
