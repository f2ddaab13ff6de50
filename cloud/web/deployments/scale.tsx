// How many replicas are wanted, within what the agent's policy allows. Applied only to what the reader has seen.
import { Button, NumberInput } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, problemCode } from "../api/client.ts";
import type { Deployment, DeploymentDetail } from "../api/types.ts";
import { plural } from "../parts/format.ts";
import { Note, ProblemNote } from "../parts/notes.tsx";
import { toast } from "../shell/toasts.tsx";
import { changesText, diffSpecs } from "./diff.ts";

export function Scale({ deployment }: { deployment: DeploymentDetail }) {
  const client = useQueryClient();
  // Null = the reader has not touched it: it follows what is wanted.
  const [edit, setEdit] = useState<{ value: number | ""; base: DeploymentDetail } | null>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const value = edit?.value ?? deployment.spec.replicas;
  const limit = deployment.ceilings.replicas;
  const moved = edit !== null && edit.base.generation !== deployment.generation;
  const problem =
    value === "" || !Number.isInteger(value) || value < 0
      ? "A whole number, 0 or more."
      : value > limit
        ? `The agent's policy allows at most ${plural(limit, "replica")} (policy.ceilings.replicas).`
        : null;
  const apply = async () => {
    if (edit === null || value === "" || problem !== null) return;
    setBusy(true);
    setError(null);
    try {
      const made = await api.post<Deployment>(
        `/v1/deployments/${deployment.id}/scale`,
        { replicas: value },
        { "if-match": `"${edit.base.generation}"` },
      );
      setEdit(null);
      toast(`${deployment.name}: ${plural(value, "replica")} wanted, generation ${made.generation}.`);
    } catch (caught) {
      if (problemCode(caught) !== "PRECONDITION_FAILED") setError(caught);
    }
    await client.invalidateQueries({ queryKey: ["deployments"] });
    setBusy(false);
  };
  const gone = deployment.state === "removing";
  return (
    <section className="card" aria-label="Scale">
      <div className="card-head">
        <h2>Scale</h2>
        <span className="faint small clip">restarts no replica</span>
      </div>
      <form
        className="card-body stack"
        onSubmit={(event) => {
          event.preventDefault();
          void apply();
        }}
      >
        <div className="row" style={{ alignItems: "flex-end" }}>
          <NumberInput
            label="Replicas"
            w={110}
            min={0}
            max={Math.max(limit, deployment.spec.replicas)}
            clampBehavior="none"
            allowDecimal={false}
            value={value}
            disabled={gone}
            onChange={(next) => {
              setError(null);
              setEdit((old) => ({ value: next === "" ? "" : Number(next), base: old?.base ?? deployment }));
            }}
            error={problem !== null}
            {...(problem ? { "aria-describedby": "scale-problem" } : {})}
          />
          <Button
            type="submit"
            loading={busy}
            disabled={edit === null || problem !== null || moved || gone || value === deployment.spec.replicas}
          >
            Apply
          </Button>
          {edit !== null && !moved && value !== deployment.spec.replicas && (
            <Button variant="subtle" color="gray" onClick={() => setEdit(null)}>
              Undo
            </Button>
          )}
        </div>
        <span id="scale-problem" className={problem ? "tone-bad" : "dim"} {...(problem ? { role: "alert" } : {})}>
          {problem ??
            (limit === 0
              ? "The agent's policy allows none."
              : value === 0
                ? "With 0 replicas nothing answers at the endpoint."
                : `The agent's policy allows up to ${limit}.`)}
        </span>
        {moved && (
          <Note
            tone="warn"
            title={`It has changed meanwhile: ${deployment.actor.name} made generation ${deployment.generation}.`}
          >
            {changesText(diffSpecs(edit.base.spec, deployment.spec)) || "What is asked for is the same"}. Nothing of
            yours was applied.
            <span className="row" style={{ marginTop: 8 }}>
              <Button
                variant="default"
                size="compact-xs"
                onClick={() => setEdit({ value: edit.value, base: deployment })}
              >
                Go on with {value === "" ? "mine" : plural(value, "replica")}
              </Button>
              <Button variant="default" size="compact-xs" onClick={() => setEdit(null)}>
                Leave it
              </Button>
            </span>
          </Note>
        )}
        {error !== null && <ProblemNote error={error} />}
      </form>
    </section>
  );
}
