// The frame around every page but sign-in: navigation, search, who is signed in, and whether the page is live.
import { Menu } from "@mantine/core";
import {
  IconActivity,
  IconChevronDown,
  IconFolders,
  IconHome2,
  IconLogout,
  IconRocket,
  IconSearch,
  IconServer2,
  IconSettings,
  IconTerminal2,
  IconWifiOff,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { Link, Outlet, useNavigate } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { followChanges, useLive } from "../api/changes.ts";
import { agentsQuery, deploymentsQuery, meQuery, useRuns } from "../api/queries.ts";
import type { Deployment } from "../api/types.ts";
import { ProblemNote } from "../parts/notes.tsx";
import { isTyping } from "../parts/table.tsx";
import { Mark } from "./mark.tsx";
import { Palette } from "./palette.tsx";
import { signOut } from "./sign-out.ts";
import { ThemeItems } from "./theme-choice.tsx";
import { Toasts } from "./toasts.tsx";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
/** `g` and one of these goes to a page. */
const GO: Record<string, string> = {
  h: "/",
  a: "/agents",
  f: "/artifacts",
  r: "/runs",
  d: "/deployments",
  c: "/commands",
  s: "/settings",
};

/** States of a deployment that ask for somebody. */
const AILING = new Set<Deployment["state"]>(["refused", "degraded", "failed"]);

export function Layout() {
  const client = useQueryClient();
  const navigate = useNavigate();
  const me = useQuery(meQuery);
  const agents = useQuery(agentsQuery);
  const runs = useRuns();
  const deployments = useQuery(deploymentsQuery);
  const live = useLive();
  const [palette, setPalette] = useState(false);

  useEffect(() => followChanges(client), [client]);

  const chord = useRef(0);
  useEffect(() => {
    const listen = (event: KeyboardEvent) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
        event.preventDefault();
        setPalette((open) => !open);
        return;
      }
      if (event.key === "Escape" && !isTyping(event.target) && !document.querySelector("[role=dialog], [role=menu]")) {
        document.querySelector<HTMLElement>("[data-escape]")?.click();
        return;
      }
      if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") {
        event.preventDefault();
        const filter = document.querySelector<HTMLInputElement>("input[data-page-filter], [data-page-filter] input");
        if (filter) filter.select();
        else setPalette(true);
        return;
      }
      const to = GO[event.key];
      if (to !== undefined && performance.now() - chord.current < 1000) {
        event.preventDefault();
        chord.current = 0;
        void navigate({ to });
      } else if (event.key === "g") chord.current = performance.now();
    };
    window.addEventListener("keydown", listen, { capture: true });
    return () => window.removeEventListener("keydown", listen, { capture: true });
  }, [navigate]);

  const bad = agents.data?.filter((agent) => agent.state === "lost" || agent.state === "disconnected").length ?? 0;
  const running = runs.items?.filter((run) => run.state === "running").length ?? 0;
  const ailing = deployments.data?.filter((each) => AILING.has(each.state)).length ?? 0;
  const item = (
    to: string,
    word: string,
    Shape: typeof IconHome2,
    count?: { n: number; tone: string; label: string },
  ) => (
    <Link
      to={to}
      className="nav"
      activeProps={{ className: "active" }}
      activeOptions={{ exact: to === "/", includeSearch: false }}
      title={word}
    >
      <Shape size={17} stroke={1.7} aria-hidden />
      <span>{word}</span>
      {count && count.n > 0 && (
        <span className={`count ${count.tone}`} title={`${count.n} ${count.label}`}>
          {count.n}
          <span className="sr"> {count.label}</span>
        </span>
      )}
    </Link>
  );

  const user = me.data?.user.name ?? "";
  return (
    <div className="frame">
      <a href="#main" className="skip">
        Skip to the page
      </a>
      <nav className="side" aria-label="Main">
        <Link to="/" className="brand" aria-label="Sallyport, home">
          <Mark />
          <span>Sallyport</span>
        </Link>
        <button type="button" className="side-search" onClick={() => setPalette(true)} title="Search or do something">
          <IconSearch size={14} stroke={1.8} aria-hidden />
          <span>Search</span>
          <span className="kbd">{MAC ? "⌘K" : "Ctrl K"}</span>
        </button>
        {item("/", "Home", IconHome2)}
        {item("/agents", "Agents", IconServer2, { n: bad, tone: "bad", label: "offline" })}
        {item("/artifacts", "Artifacts", IconFolders)}
        {item("/runs", "Runs", IconActivity, { n: running, tone: "run", label: "running" })}
        {item("/deployments", "Deployments", IconRocket, { n: ailing, tone: "bad", label: "not as wanted" })}
        {item("/commands", "Commands", IconTerminal2)}
        {item("/settings", "Settings", IconSettings)}
        <div className="side-foot">
          {!live && (
            <div
              className="notlive row"
              role="status"
              title="Live updates are interrupted; the page tries again by itself."
            >
              <IconWifiOff size={15} aria-hidden />
              <span>Not live, reconnecting…</span>
            </div>
          )}
          <Menu position="top-start" width={252}>
            <Menu.Target>
              <button type="button" className="side-user" title={`Account of ${user}`}>
                <span className="face" aria-hidden>
                  {user.slice(0, 1).toUpperCase()}
                </span>
                <span className="who grow" style={{ lineHeight: 1.25 }}>
                  <div className="clip" style={{ fontWeight: 550 }}>
                    {user || "…"}
                  </div>
                  <div className="clip faint" style={{ fontSize: 11.5 }}>
                    {me.data?.workspace.name}
                  </div>
                </span>
                <IconChevronDown size={14} className="faint" aria-hidden />
              </button>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Label>Theme</Menu.Label>
              <ThemeItems />
              <Menu.Divider />
              <Menu.Item leftSection={<IconSettings size={15} />} onClick={() => void navigate({ to: "/settings" })}>
                Settings
              </Menu.Item>
              <Menu.Item leftSection={<IconLogout size={15} />} onClick={() => void signOut()}>
                Sign out
              </Menu.Item>
              <Menu.Divider />
              <Menu.Label>Sallyport {me.data?.version}</Menu.Label>
            </Menu.Dropdown>
          </Menu>
        </div>
      </nav>
      <main className="main" id="main">
        {me.error && (me.error as { problem?: { status: number } }).problem?.status !== 401 && !me.data ? (
          <div className="body">
            <div className="narrow">
              <ProblemNote error={me.error} onRetry={() => void me.refetch()} />
            </div>
          </div>
        ) : (
          <Outlet />
        )}
      </main>
      <Palette opened={palette} onClose={() => setPalette(false)} />
      <Toasts />
    </div>
  );
}
