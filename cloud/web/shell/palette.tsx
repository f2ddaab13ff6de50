// Ctrl-K: go anywhere, open anything by name, run an action. Searches what the page has already loaded.
import { Modal, useMantineColorScheme } from "@mantine/core";
import {
  IconActivity,
  IconFolder,
  IconHome2,
  IconLogout,
  IconMoon,
  IconPlayerPlay,
  IconPlus,
  IconRocket,
  IconServer2,
  IconSettings,
  IconSun,
  IconTerminal2,
  type Icon,
} from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useEffect, useId, useMemo, useRef, useState } from "react";
import { agentsQuery, deploymentsQuery, poolsQuery, useRuns } from "../api/queries.ts";
import { AGENT_LOOKS, DEPLOYMENT_LOOKS, RUN_LOOKS, lookOf } from "../parts/status.tsx";
import { shortId } from "../parts/format.ts";
import { signOut } from "./sign-out.ts";

interface Item {
  group: string;
  text: string;
  hint?: string;
  icon: Icon;
  run: () => void;
}

export function Palette({ opened, onClose }: { opened: boolean; onClose: () => void }) {
  return (
    // Of its parts: only the content may carry the name of a dialog that shows no title.
    <Modal.Root opened={opened} onClose={onClose} padding={0} size={580} centered={false} yOffset="14vh">
      <Modal.Overlay backgroundOpacity={0.45} />
      <Modal.Content aria-label="Search and actions">
        <Modal.Body>{opened && <Body onClose={onClose} />}</Modal.Body>
      </Modal.Content>
    </Modal.Root>
  );
}

function Body({ onClose }: { onClose: () => void }) {
  const navigate = useNavigate();
  const agents = useQuery(agentsQuery).data;
  const pools = useQuery(poolsQuery).data;
  const runs = useRuns().items;
  const deployments = useQuery(deploymentsQuery).data;
  const { setColorScheme } = useMantineColorScheme();
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const list = useRef<HTMLDivElement>(null);
  const id = useId();

  const items = useMemo<Item[]>(() => {
    const go = (to: string) => () => void navigate({ to });
    return [
      { group: "Go to", text: "Home", hint: "g h", icon: IconHome2, run: go("/") },
      { group: "Go to", text: "Agents", hint: "g a", icon: IconServer2, run: go("/agents") },
      { group: "Go to", text: "Artifacts", hint: "g f", icon: IconFolder, run: go("/artifacts") },
      { group: "Go to", text: "Runs", hint: "g r", icon: IconActivity, run: go("/runs") },
      { group: "Go to", text: "Deployments", hint: "g d", icon: IconRocket, run: go("/deployments") },
      { group: "Go to", text: "Commands", hint: "g c", icon: IconTerminal2, run: go("/commands") },
      { group: "Go to", text: "Settings", hint: "g s", icon: IconSettings, run: go("/settings") },
      { group: "Do", text: "Start a run", icon: IconPlayerPlay, run: go("/runs/new") },
      { group: "Do", text: "Deploy a model", icon: IconRocket, run: go("/deployments/new") },
      { group: "Do", text: "Add an agent", icon: IconPlus, run: go("/agents/new") },
      { group: "Do", text: "Use the dark theme", icon: IconMoon, run: () => setColorScheme("dark") },
      { group: "Do", text: "Use the light theme", icon: IconSun, run: () => setColorScheme("light") },
      { group: "Do", text: "Use the system's theme", icon: IconSun, run: () => setColorScheme("auto") },
      { group: "Do", text: "Sign out", icon: IconLogout, run: () => void signOut() },
      ...(agents ?? []).map((agent) => ({
        group: "Agents",
        text: agent.name,
        hint: lookOf(AGENT_LOOKS, agent.state).word,
        icon: IconServer2,
        run: () => void navigate({ to: "/agents/$id", params: { id: agent.id } }),
      })),
      ...(pools ?? []).flatMap((pool) =>
        pool.stores.map((store) => ({
          group: "Stores",
          text: `${pool.name} / ${store.id}`,
          hint: store.label,
          icon: IconFolder,
          run: () => void navigate({ to: "/artifacts/$pool/$store", params: { pool: pool.name, store: store.id } }),
        })),
      ),
      ...(deployments ?? []).map((deployment) => ({
        group: "Deployments",
        text: deployment.name,
        hint: `${lookOf(DEPLOYMENT_LOOKS, deployment.state).word}, ${deployment.pool.name}`,
        icon: IconRocket,
        run: () => void navigate({ to: "/deployments/$id", params: { id: deployment.id } }),
      })),
      ...(runs ?? []).slice(0, 200).map((run) => ({
        group: "Runs",
        text: `${run.pipeline} ${shortId(run.id)}`,
        hint: lookOf(RUN_LOOKS, run.state).word,
        icon: IconActivity,
        run: () => void navigate({ to: "/runs/$id", params: { id: run.id } }),
      })),
    ];
  }, [agents, pools, deployments, runs, navigate, setColorScheme]);

  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const found = items.filter((item) =>
    words.every((word) => `${item.group} ${item.text} ${item.hint ?? ""}`.toLowerCase().includes(word)),
  );
  const shown =
    words.length === 0
      ? found.filter(
          (item, n) => item.group !== "Runs" || found.slice(0, n).filter((each) => each.group === "Runs").length < 5,
        )
      : found.slice(0, 60);
  useEffect(() => setAt(0), [text]);
  useEffect(() => {
    list.current?.querySelector(`[data-at="${at}"]`)?.scrollIntoView({ block: "nearest" });
  }, [at]);
  const run = (item: Item | undefined) => {
    if (!item) return;
    onClose();
    item.run();
  };
  return (
    <>
      <input
        className="pal-in"
        data-autofocus
        placeholder="Search agents, stores, deployments, runs, or type an action"
        aria-label="Search or type an action"
        role="combobox"
        aria-expanded={shown.length > 0}
        aria-controls={shown.length > 0 ? `${id}-list` : undefined}
        aria-activedescendant={shown.length > 0 ? `${id}-${at}` : undefined}
        value={text}
        onChange={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "ArrowDown") setAt(Math.min(shown.length - 1, at + 1));
          else if (event.key === "ArrowUp") setAt(Math.max(0, at - 1));
          else if (event.key === "Enter") run(shown[at]);
          else return;
          event.preventDefault();
        }}
      />
      {shown.length === 0 && (
        <div className="empty" style={{ minHeight: 120, padding: 24 }} role="status">
          Nothing here is called “{text}”.
        </div>
      )}
      <div
        className="pal-list"
        role="listbox"
        id={`${id}-list`}
        aria-label="Results"
        ref={list}
        hidden={shown.length === 0}
      >
        {shown.map((item, n) => (
          <div key={`${item.group} ${item.text} ${n}`} role="presentation">
            {item.group !== shown[n - 1]?.group && (
              <div className="pal-group" role="presentation">
                {item.group}
              </div>
            )}
            {/* oxlint-disable-next-line jsx-a11y/click-events-have-key-events, jsx-a11y/interactive-supports-focus -- the field above holds the focus and the keys */}
            <div
              className="pal-item"
              role="option"
              id={`${id}-${n}`}
              data-at={n}
              aria-selected={n === at}
              onMouseMove={() => setAt(n)}
              onClick={() => run(item)}
            >
              <item.icon size={16} stroke={1.7} className="faint" aria-hidden />
              <span className="clip">{item.text}</span>
              {item.hint && <span className="hint clip">{item.hint}</span>}
            </div>
          </div>
        ))}
      </div>
    </>
  );
}
