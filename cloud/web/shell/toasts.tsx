// Short words about something that was done, at the edge of the window. Failures are shown where they happened instead.
import { IconCircleCheckFilled } from "@tabler/icons-react";
import { useSyncExternalStore } from "react";

interface Toast {
  id: number;
  text: string;
}
const SHOWN_MS = 4_000;
let toasts: readonly Toast[] = [];
let nextId = 1;
const listeners = new Set<() => void>();
const set = (next: readonly Toast[]) => {
  toasts = next;
  for (const listener of listeners) listener();
};

export function toast(text: string): void {
  const id = nextId++;
  set([...toasts.slice(-3), { id, text }]);
  setTimeout(() => set(toasts.filter((each) => each.id !== id)), SHOWN_MS);
}

export function Toasts() {
  const shown = useSyncExternalStore(
    (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    () => toasts,
  );
  return (
    <div className="toasts" aria-live="polite">
      {shown.map((each) => (
        <div key={each.id} className="toast">
          <IconCircleCheckFilled size={17} className="tone-ok" style={{ flex: "none", marginTop: 1 }} aria-hidden />
          <span>{each.text}</span>
        </div>
      ))}
    </div>
  );
}
