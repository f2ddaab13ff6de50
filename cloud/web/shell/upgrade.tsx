// What an open tab does when a part of the page cannot be fetched. After an upgrade of the control plane the parts that
// this tab knows by name are gone: it loads the page anew, once, at the address that the reader goes to. When the
// control plane only did not answer, it says so and waits for a word: a browser's own error page helps nobody.
import type { ErrorComponentProps } from "@tanstack/react-router";
import { useEffect, useState } from "react";
import { ProblemNote } from "../parts/notes.tsx";
import { toast } from "./toasts.tsx";

/** Kept over the loading; also tells when it was, so that a page which stays broken is not loaded for ever. */
const MARK = "sallyport.upgraded";
const AGAIN_MS = 30_000;

class LostPart extends Error {
  override name = "LostPart";
}

/** Around each `import()`: a failure is told as ours, which `Broken` understands. */
export const part = <T,>(loading: Promise<T>): Promise<T> =>
  loading.catch((cause: unknown) => {
    throw new LostPart("This part of the page could not be fetched.", { cause });
  });

/** Whether the control plane serves another page than this tab runs; null = it does not answer. */
async function isUpgraded(): Promise<boolean | null> {
  const entry = document.querySelector<HTMLScriptElement>("script[type=module][src]")?.getAttribute("src");
  if (!entry) return null;
  try {
    const response = await fetch("/", { headers: { accept: "text/html" }, cache: "no-store" });
    return response.ok ? !(await response.text()).includes(entry) : null;
  } catch {
    return null;
  }
}

/** Says what was done, in the page that was loaded anew. */
export function tellUpgrade(): void {
  const at = sessionStorage.getItem(MARK);
  if (at === null || Number.isNaN(Number(at))) return;
  sessionStorage.setItem(MARK, `told ${at}`);
  toast("The control plane was upgraded: this page was loaded anew.");
}

const lately = () => Date.now() - Number((sessionStorage.getItem(MARK) ?? "0").replace("told ", "")) < AGAIN_MS;

/** In the place of a page that could not be shown. */
export function Broken({ error }: ErrorComponentProps) {
  const lost = error instanceof LostPart;
  const [anew, setAnew] = useState(lost);
  useEffect(() => {
    if (!lost) return;
    let left = false;
    void isUpgraded().then((upgraded) => {
      if (left) return;
      if (upgraded !== true || lately()) return setAnew(false);
      sessionStorage.setItem(MARK, String(Date.now()));
      location.reload();
    });
    return () => {
      left = true;
    };
  }, [lost]);
  // What failed once is not asked for again by the browser: only a page loaded anew does.
  const retry = () =>
    void (lost ? isUpgraded() : Promise.resolve(true)).then((answers) => {
      if (answers !== null) location.reload();
    });
  return (
    <div className="body">{!anew && <div className="narrow">{<ProblemNote error={error} onRetry={retry} />}</div>}</div>
  );
}
