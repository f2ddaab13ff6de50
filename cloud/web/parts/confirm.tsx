// Asks in words what is about to happen, then does it, and stays open with the problem when it fails.
import { Button, Modal } from "@mantine/core";
import { useState, type ReactNode } from "react";
import { problemCode } from "../api/client.ts";
import { Note, ProblemNote } from "./notes.tsx";

interface Props {
  opened: boolean;
  onClose: () => void;
  title: string;
  children: ReactNode;
  /** The verb on the button: "Revoke prod-1". */
  verb: string;
  act: () => Promise<unknown>;
  /** When what is acted on has changed meanwhile: shows it as it is now. */
  onConflict?: () => void;
  /** True when the act cannot be undone. */
  danger?: boolean;
  /** False while something that is asked for in `children` is missing. */
  ready?: boolean;
}

export function Confirm({
  opened,
  onClose,
  title,
  children,
  verb,
  act,
  onConflict,
  danger = true,
  ready = true,
}: Props) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const close = () => {
    setError(null);
    onClose();
  };
  const go = async () => {
    setBusy(true);
    setError(null);
    try {
      await act();
      close();
    } catch (caught) {
      setError(caught);
    } finally {
      setBusy(false);
    }
  };
  const conflict = onConflict !== undefined && problemCode(error) === "PRECONDITION_FAILED";
  return (
    <Modal opened={opened} onClose={close} title={<b>{title}</b>} size={460}>
      <div className="stack">
        <div>{children}</div>
        {conflict ? (
          <Note tone="warn" title="It has changed since you looked at it.">
            Somebody wrote another version meanwhile, so nothing was done. Look at it, then decide again.
          </Note>
        ) : (
          error !== null && <ProblemNote error={error} />
        )}
        <div className="row" style={{ justifyContent: "flex-end" }}>
          <Button variant="default" onClick={close}>
            Keep as it is
          </Button>
          {conflict ? (
            <Button
              onClick={() => {
                close();
                onConflict?.();
              }}
            >
              Show what is there now
            </Button>
          ) : (
            <Button
              {...(danger ? { color: "red" } : {})}
              loading={busy}
              disabled={!ready}
              onClick={() => void go()}
              data-autofocus
            >
              {verb}
            </Button>
          )}
        </div>
      </div>
    </Modal>
  );
}
