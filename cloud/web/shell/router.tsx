// Every address of the page. What a reader may want to share (filter, selection, tab, line) is in the query string.
import { createRootRoute, createRoute, createRouter, lazyRouteComponent, Link, Outlet } from "@tanstack/react-router";
import { IconMapQuestion } from "@tabler/icons-react";
import { Empty } from "../parts/notes.tsx";
import { Layout } from "./layout.tsx";
import { Broken, part } from "./upgrade.tsx";

type Raw = Record<string, unknown>;
const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : undefined);
const number = (value: unknown): number | undefined => {
  const n = Number(value);
  return typeof value === "string" || typeof value === "number"
    ? Number.isInteger(n) && n > 0
      ? n
      : undefined
    : undefined;
};
/** Keeps the query string free of what is not set. */
const only = <T extends Raw>(search: T): { [K in keyof T]?: Exclude<T[K], undefined> } =>
  Object.fromEntries(Object.entries(search).filter(([, value]) => value !== undefined)) as never;

const root = createRootRoute({
  component: Outlet,
  notFoundComponent: () => (
    <div className="body flush">
      <Empty
        icon={IconMapQuestion}
        title="There is no page at this address"
        action={
          <Link to="/" className="link">
            Go home
          </Link>
        }
      >
        The link may be old, or a part of it is missing.
      </Empty>
    </div>
  ),
  errorComponent: Broken,
});
const signin = createRoute({
  getParentRoute: () => root,
  path: "/signin",
  component: lazyRouteComponent(() => part(import("../pages/signin.tsx")), "SignIn"),
});
const frame = createRoute({ getParentRoute: () => root, id: "frame", component: Layout });
const under = { getParentRoute: () => frame };

const home = createRoute({
  ...under,
  path: "/",
  component: lazyRouteComponent(() => part(import("../pages/home.tsx")), "Home"),
});
const agents = createRoute({
  ...under,
  path: "/agents",
  validateSearch: (search: Raw) =>
    only({ q: text(search["q"]), state: text(search["state"]), view: text(search["view"]) }),
  component: lazyRouteComponent(() => part(import("../pages/agents.tsx")), "Agents"),
});
const addAgent = createRoute({
  ...under,
  path: "/agents/new",
  validateSearch: (search: Raw) => only({ pool: text(search["pool"]) }),
  component: lazyRouteComponent(() => part(import("../pages/add-agent.tsx")), "AddAgent"),
});
const agent = createRoute({
  ...under,
  path: "/agents/$id",
  validateSearch: (search: Raw) => only({ tab: text(search["tab"]) }),
  component: lazyRouteComponent(() => part(import("../pages/agent.tsx")), "AgentDetail"),
});
const stores = createRoute({
  ...under,
  path: "/artifacts",
  component: lazyRouteComponent(() => part(import("../pages/stores.tsx")), "Stores"),
});
const artifacts = createRoute({
  ...under,
  path: "/artifacts/$pool/$store",
  validateSearch: (search: Raw) =>
    only({
      path: text(search["path"]),
      file: text(search["file"]),
      q: text(search["q"]),
      view: text(search["view"]),
      line: number(search["line"]),
    }),
  component: lazyRouteComponent(() => part(import("../pages/artifacts.tsx")), "Artifacts"),
});
const runs = createRoute({
  ...under,
  path: "/runs",
  validateSearch: (search: Raw) => only({ q: text(search["q"]), state: text(search["state"]) }),
  component: lazyRouteComponent(() => part(import("../pages/runs.tsx")), "Runs"),
});
const newRun = createRoute({
  ...under,
  path: "/runs/new",
  validateSearch: (search: Raw) =>
    only({
      pool: text(search["pool"]),
      store: text(search["store"]),
      path: text(search["path"]),
      from: text(search["from"]),
    }),
  component: lazyRouteComponent(() => part(import("../pages/new-run.tsx")), "NewRun"),
});
const run = createRoute({
  ...under,
  path: "/runs/$id",
  validateSearch: (search: Raw) =>
    only({
      step: text(search["step"]),
      attempt: number(search["attempt"]),
      tab: text(search["tab"]),
      line: number(search["line"]),
      q: text(search["q"]),
    }),
  component: lazyRouteComponent(() => part(import("../pages/run.tsx")), "RunDetailPage"),
});
const deployments = createRoute({
  ...under,
  path: "/deployments",
  validateSearch: (search: Raw) => only({ q: text(search["q"]), state: text(search["state"]) }),
  component: lazyRouteComponent(() => part(import("../pages/deployments.tsx")), "Deployments"),
});
/** A model to deploy, by reference: `?pool&store&path&digest`. */
const model = (search: Raw) =>
  only({
    pool: text(search["pool"]),
    store: text(search["store"]),
    path: text(search["path"]),
    digest: text(search["digest"]),
  });
const newDeployment = createRoute({
  ...under,
  path: "/deployments/new",
  validateSearch: model,
  component: lazyRouteComponent(() => part(import("../pages/new-deployment.tsx")), "NewDeployment"),
});
const deployment = createRoute({
  ...under,
  path: "/deployments/$id",
  validateSearch: (search: Raw) =>
    only({
      tab: text(search["tab"]),
      replica: text(search["replica"]),
      start: number(search["start"]),
      line: number(search["line"]),
    }),
  component: lazyRouteComponent(() => part(import("../pages/deployment.tsx")), "DeploymentPage"),
});
const changeDeployment = createRoute({
  ...under,
  path: "/deployments/$id/change",
  validateSearch: model,
  component: lazyRouteComponent(() => part(import("../pages/new-deployment.tsx")), "ChangeDeployment"),
});
const commands = createRoute({
  ...under,
  path: "/commands",
  validateSearch: (search: Raw) => only({ q: text(search["q"]), state: text(search["state"]), id: text(search["id"]) }),
  component: lazyRouteComponent(() => part(import("../pages/commands.tsx")), "Commands"),
});
const settings = createRoute({
  ...under,
  path: "/settings",
  validateSearch: (search: Raw) => only({ tab: text(search["tab"]) }),
  component: lazyRouteComponent(() => part(import("../pages/settings.tsx")), "Settings"),
});

export const router = createRouter({
  routeTree: root.addChildren([
    signin,
    frame.addChildren([
      home,
      agents,
      addAgent,
      agent,
      stores,
      artifacts,
      runs,
      newRun,
      run,
      deployments,
      newDeployment,
      deployment,
      changeDeployment,
      commands,
      settings,
    ]),
  ]),
  defaultPreload: "intent",
  // Within the frame: what else there is can still be reached.
  defaultErrorComponent: Broken,
  // Plain `a=b`, no JSON: addresses are read and written by people too.
  parseSearch: (search) => Object.fromEntries(new URLSearchParams(search)),
  stringifySearch: (search) => {
    const params = new URLSearchParams();
    for (const [name, value] of Object.entries(search)) {
      if (value !== undefined && value !== null && value !== "") params.set(name, String(value));
    }
    const out = params.toString().replaceAll("%2F", "/");
    return out === "" ? "" : `?${out}`;
  },
});

declare module "@tanstack/react-router" {
  interface Register {
    router: typeof router;
  }
}
