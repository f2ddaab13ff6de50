// Drives the page in a real Chromium, for tests. What a browser must never see fails the test by itself: an error in the
// console, a violation of the content security policy, a request to anybody but the control plane that served the page.
// Check `needs("chromium")` of skip.ts first.
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { chromium, type Browser, type Page } from "playwright-core";
import { waitFor } from "./launcher.ts";
import { findServer } from "./skip.ts";

export interface WatchedPage {
  readonly page: Page;
  /** What went wrong so far, a sentence each. A test ends with this being empty. */
  readonly faults: string[];
  /** Forgives console errors that match: a test that provokes a refusal sees the browser log its status. */
  allow(pattern: RegExp): void;
  /** Waits until fonts and pictures are there, then writes a PNG. */
  screenshot(path: string): Promise<void>;
  /**
   * What stands on the page now, looked at as a reader may have it: light, dark, narrow and on a phone. Adds to `faults`
   * what axe calls serious or critical, and a page that can be scrolled sideways. A folder gets a picture of each.
   */
  inspect(name: string, pictures?: string): Promise<void>;
}

export interface BrowserDriver {
  /** A page with its own cookies. `origin` is the only one that it may talk to. */
  open(origin: string, options?: { dark?: boolean; width?: number; height?: number }): Promise<WatchedPage>;
  close(): Promise<void>;
}

const axe = () => readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** Run in the page: its accessibility tree, colours included. */
const AUDIT = `axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => violations
  .filter((each) => each.impact === "serious" || each.impact === "critical")
  .map((each) => each.id + " (" + each.impact + "): " + each.nodes.slice(0, 4).map((node) => node.target.join(" ") + " | " + (node.any[0]?.message ?? node.all[0]?.message ?? each.help)).join("; ")))`;
const WIDER = "document.documentElement.scrollWidth > document.documentElement.clientWidth + 1";

export async function startBrowser(): Promise<BrowserDriver> {
  const executablePath = findServer("chromium");
  if (executablePath === undefined)
    throw new Error("No Chromium on this machine: test/support/servers/chromium install");
  const browser: Browser = await chromium.launch({
    executablePath,
    // No sandbox: tests run as root in containers. The rest keeps Chromium from talking to anybody by itself.
    args: [
      "--no-sandbox",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  return {
    async open(origin, { dark = false, width = 1440, height = 900 } = {}) {
      const context = await browser.newContext({
        viewport: { width, height },
        colorScheme: dark ? "dark" : "light",
        reducedMotion: "reduce",
        ignoreHTTPSErrors: true,
        acceptDownloads: true,
      });
      const page = await context.newPage();
      page.setDefaultTimeout(90_000); // a busy machine is slow, and not wrong
      const faults: string[] = [];
      // Other tests make network interfaces on this machine while this one runs; the page asks again by itself.
      const allowed: RegExp[] = [/net::ERR_NETWORK_CHANGED/];
      const fault = (text: string) => {
        if (!allowed.some((pattern) => pattern.test(text))) faults.push(text);
      };
      page.on("console", (message) => {
        if (message.type() === "error") fault(`console: ${message.text()}`);
      });
      page.on("pageerror", (error) => fault(`uncaught: ${error.message}`));
      page.on("request", (request) => {
        const url = new URL(request.url());
        if (url.protocol === "data:" || url.protocol === "blob:") return;
        if (url.origin !== new URL(origin).origin) fault(`third party: ${request.method()} ${request.url()}`);
      });
      // The page may not inline scripts, so the listener comes from the debugger, before any script of the page.
      await page.exposeFunction("sallyportCspViolation", (text: string) => fault(`content security policy: ${text}`));
      await page.addInitScript(() => {
        const scope = globalThis as unknown as {
          addEventListener(
            name: string,
            listener: (event: { violatedDirective: string; blockedURI: string }) => void,
          ): void;
          sallyportCspViolation(text: string): void;
        };
        scope.addEventListener("securitypolicyviolation", (event) =>
          scope.sallyportCspViolation(`${event.violatedDirective} refused ${event.blockedURI}`),
        );
      });
      const screenshot = async (path: string) => {
        mkdirSync(dirname(path), { recursive: true });
        await page.evaluate(
          () => (globalThis as unknown as { document: { fonts: { ready: Promise<unknown> } } }).document.fonts.ready,
        );
        await page.screenshot({ path });
      };
      return {
        page,
        faults,
        allow: (pattern) => void allowed.push(pattern),
        screenshot,
        async inspect(name, pictures) {
          if (!(await page.evaluate("typeof axe === 'object'"))) await page.evaluate(axe());
          for (const [suffix, colorScheme, seen] of [
            ["dark", "dark", width],
            ["narrow", "light", 900],
            ["phone", "light", 390],
            ["light", "light", width],
          ] as const) {
            await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
            await page.setViewportSize({ width: seen, height });
            // colours fade from one theme to the other: judged when they are there
            await page.evaluate(
              "Promise.allSettled(document.getAnimations().map((each) => each.iterations === Infinity || each.effect?.getTiming().iterations === Infinity ? null : each.finished))",
            );
            // the page lays itself out anew some frames after its window changed: judged when it has
            const fits = async () => !(await page.evaluate(WIDER));
            await waitFor("the page to fit", fits, { timeoutMs: 15_000 }).catch(() =>
              fault(`${name}, ${suffix}: wider than the window`),
            );
            if (pictures !== undefined) await screenshot(join(pictures, `${name}-${suffix}.png`));
            if (suffix === "narrow" || suffix === "phone") continue;
            for (const found of (await page.evaluate(AUDIT)) as string[]) fault(`${name}, ${suffix}: ${found}`);
          }
        },
      };
    },
    close: () => browser.close(),
  };
}
