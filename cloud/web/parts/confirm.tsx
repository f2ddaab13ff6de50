// Asks in words what is about to happen, then does it, and stays open with the problem when it fails.
import { Button, Modal } from "@mantine/core";
import { useState, type ReactNode } from "react";
import { ProblemNote } from "./notes.tsx";

interface Props {
  opened: boolean;
  onClose: () => void;
  title: string;
  children: ReactNode;
  /** The verb on the button: "Revoke prod-1". */
  verb: string;
  act: () => Promise<unknown>;
  /** True when the act cannot be undone. */
  danger?: boolean;
}

export function Confirm({ opened, onClose, title, children, verb, act, danger = true }: Props) {
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
  return (
    <Modal opened={opened} onClose={close} title={<b>{title}</b>} size={460}>
      <div className="stack">
        <div>{children}</div>
        {error !== null && <ProblemNote error={error} />}
        <div className="row" style={{ justifyContent: "flex-end" }}>
          <Button variant="default" onClick={close}>
            Keep as it is
          </Button>
          <Button {...(danger ? { color: "red" } : {})} loading={busy} onClick={() => void go()} data-autofocus>
            {verb}
          </Button>
        </div>
      </div>
    </Modal>
  );
}
