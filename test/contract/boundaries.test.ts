// Who may import whom, each rule with its reason. Reads the sources as text. A rule whose folder is gone fails: it
// would otherwise hold for ever without guarding anything.
import { existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { dirname, join, posix, relative } from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";

const repository = fileURLToPath(new URL("../../", import.meta.url)).replace(/[/\\]$/, "");

interface Import {
  /** Path in the repository for a relative import, else the specifier as written. */
  readonly target: string;
  /** `import type` and `export type`: gone at run time. */
  readonly typeOnly: boolean;
}

interface Source {
  readonly path: string;
  readonly imports: readonly Import[];
}

interface Rule {
  readonly name: string;
  readonly reason: string;
  /** Must exist and hold sources. */
  readonly folders: readonly string[];
  /** Whether this import breaks the rule. */
  readonly breaks: (path: string, found: Import) => boolean;
  /** An import that must be caught: [file, specifier as written]. Guards the rule against matching nothing. */
  readonly planted: readonly (readonly [file: string, statement: string])[];
}

const within = (path: string, folder: string) => path.startsWith(`${folder}/`);
const isTest = (path: string) => path.endsWith(".test.ts") || within(path, "test");
const isOurs = ({ target }: Import) =>
  target.startsWith("@sallyport/") ||
  ["protocol", "agent", "cloud", "packaging", "test"].some((top) => within(target, top));
/** agent/features/x or cloud/features/x of a path in one. */
const featureOf = (path: string) => /^(?:agent|cloud)\/features\/[^/]+/.exec(path)?.[0];
const mainFiles = ["agent/main.ts", "cloud/main.ts", "cloud/cli/main.ts", "packaging/demo/main.ts"];
/** Folders that main.ts is spread over: what only it may do, they may. */
const wiringOf = (path: string) => /^(?:agent|cloud)\/wiring(?=\/)/.exec(path)?.[0];
const wires = (path: string) => mainFiles.includes(path) || wiringOf(path) !== undefined;

/** All of it; and errors and identifiers alone, for threads that judge no message. */
const DOORS = ["@sallyport/protocol", "@sallyport/protocol/basics"];

/** A part may import only its own folder, the protocol's door, other packages, and what `more` names. */
const onlyItself = (folder: string, more: (found: Import) => boolean) => (path: string, found: Import) =>
  within(path, folder) &&
  !isTest(path) &&
  isOurs(found) &&
  !DOORS.includes(found.target) &&
  !within(found.target, folder) &&
  !more(found);

const rules: readonly Rule[] = [
  {
    name: "protocol imports nothing of ours",
    reason: "both sides and any later client load it; it must not drag one side's code into the other",
    folders: ["protocol"],
    breaks: (path, found) =>
      within(path, "protocol") && !isTest(path) && isOurs(found) && !within(found.target, "protocol"),
    planted: [
      ["protocol/frames.ts", `import { x } from "../agent/link/link.ts";`],
      ["protocol/frames.ts", `import { x } from "@sallyport/cloud";`],
    ],
  },
  {
    name: "the protocol is imported by its doors",
    reason: "what is not exported by protocol/index.ts or basics.ts may change without a look at its users",
    folders: ["protocol"],
    breaks: (path, { target }) =>
      !within(path, "protocol") &&
      (within(target, "protocol") || (target.startsWith("@sallyport/protocol/") && !DOORS.includes(target))),
    planted: [
      ["agent/link/a.ts", `import type { A } from "../../protocol/frames.ts";`],
      ["cloud/link/a.ts", `import { a } from "@sallyport/protocol/frames.ts";`],
    ],
  },
  {
    name: "agent and cloud never import each other, nor packaging or test",
    reason:
      "the agent's image carries no cloud code, the cloud's no code that meets a secret; only the link joins them",
    folders: ["agent", "cloud"],
    breaks: (path, found) =>
      ["agent", "cloud"].some(
        (side) =>
          within(path, side) &&
          !isTest(path) &&
          isOurs(found) &&
          !DOORS.includes(found.target) &&
          !within(found.target, side) &&
          // The start scripts share the search for Node 24, which is no part of the product.
          !(within(path, `${side}/bin`) && found.target === "packaging/launch/launch.mjs"),
      ),
    planted: [
      ["agent/main.ts", `import { x } from "../cloud/main.ts";`],
      ["agent/link/link.ts", `import type { X } from "../../cloud/link/sessions.ts";`],
      ["cloud/http/a.ts", `const x = await import("@sallyport/agent");`],
      ["cloud/dispatch/a.ts", `import { waitFor } from "../../test/support/launcher.ts";`],
      ["agent/stores/a.ts", `import { run } from "../../packaging/launch/launch.mjs";`],
    ],
  },
  {
    name: "a test's unit is on one side, too",
    reason: "only system tests, in test/, join agent and cloud, and then as programs over a real link",
    folders: ["agent", "cloud"],
    breaks: (path, { target }) =>
      (within(path, "agent") && within(target, "cloud")) || (within(path, "cloud") && within(target, "agent")),
    planted: [["agent/link/link.test.ts", `import { Gateway } from "../../cloud/link/gateway.ts";`]],
  },
  {
    name: "a feature imports no link, no http, no other feature, no configuration and no main",
    reason: "a feature returns its result and never sends; one may be changed or left out without the others",
    folders: ["agent/features", "cloud/features"],
    breaks: (path, { target }) => {
      const feature = featureOf(path);
      if (feature === undefined || isTest(path)) return false;
      const side = path.slice(0, path.indexOf("/"));
      const other = featureOf(target);
      return (
        ["link", "http", "config"].some((part) => within(target, `${side}/${part}`)) ||
        target === `${side}/main.ts` ||
        (other !== undefined && other !== feature)
      );
    },
    planted: [
      ["agent/features/artifacts/list.ts", `import type { Link } from "../../link/link.ts";`],
      ["agent/features/artifacts/list.ts", `import { run } from "../pipelines/run.ts";`],
      ["cloud/features/pipelines/runs.ts", `export * from "../../http/routes.ts";`],
    ],
  },
  {
    name: "the link knows no feature, no command and no store",
    reason: "it moves frames; whatever it knew of their meaning would have to change with each capability",
    folders: ["agent/link", "cloud/link"],
    breaks: (path, { target }) => {
      if (isTest(path) || !/^(agent|cloud)\/link\//.test(path)) return false;
      return /^(agent|cloud)\/(features|http|dispatch|commands|stores|engines|policy|store|main\.ts)/.test(target);
    },
    planted: [
      ["agent/link/mux.ts", `import { a } from "../features/artifacts/index.ts";`],
      ["cloud/link/gateway.ts", `import { a } from "../dispatch/dispatcher.ts";`],
    ],
  },
  {
    name: "only main.ts and its wiring wire: only they (and a feature's own HTTP routes) import a feature, and nobody main.ts",
    reason: "the one place that knows everybody is also the one place to read to see what runs",
    folders: ["agent", "cloud", "agent/wiring", "cloud/wiring"],
    breaks: (path, { target }) =>
      mainFiles.includes(target) ||
      (featureOf(target) !== undefined &&
        !isTest(path) &&
        !wires(path) &&
        !within(path, "cloud/http/routes") &&
        featureOf(path) !== featureOf(target)),
    planted: [
      ["agent/commands/registry.ts", `import { list } from "../features/artifacts/list.ts";`],
      ["agent/cli/ps.ts", `import { createPipelines } from "../features/pipelines/index.ts";`],
      ["cloud/http/server.ts", `import { runs } from "../features/pipelines/index.ts";`],
      ["cloud/http/server.ts", `import { main } from "../main.ts";`],
      ["agent/wiring/agent.ts", `import { run } from "../main.ts";`],
    ],
  },
  {
    name: "only main.ts imports its side's wiring",
    reason: "a part that asked the wiring for another part would know everybody; parts are handed what they need",
    folders: ["agent/wiring", "cloud/wiring"],
    breaks: (path, { target }) => {
      const wiring = wiringOf(target);
      if (wiring === undefined) return false;
      const side = wiring.slice(0, wiring.indexOf("/"));
      // A test of this side may start the whole of it.
      const allowed = within(path, wiring) || path === `${side}/main.ts` || (within(path, side) && isTest(path));
      return !allowed;
    },
    planted: [
      ["agent/commands/runner.ts", `import type { Parts } from "../wiring/parts.ts";`],
      ["agent/cli/ps.ts", `import { hostRuns } from "../wiring/ps.ts";`],
      ["cloud/http/server.ts", `import { lockData } from "../wiring/data-lock.ts";`],
      ["cloud/cli/main.ts", `import { lockData } from "../wiring/data-lock.ts";`],
      ["test/system/a.test.ts", `import { startAgent } from "../../agent/wiring/agent.ts";`],
    ],
  },
  {
    name: "only main.ts imports the agent's local sub-commands",
    reason: "they are another program in the same file: they speak to a running agent and are no part of it",
    folders: ["agent/cli"],
    breaks: (path, { target }) => within(target, "agent/cli") && !within(path, "agent/cli") && path !== "agent/main.ts",
    planted: [["agent/wiring/ps.ts", `import { EXIT } from "../cli/local.ts";`]],
  },
  {
    name: "the policy decides from values alone",
    reason: "a verdict that can be recomputed from its inputs can be tested whole and shown to the customer",
    folders: ["agent/policy"],
    breaks: (path, found) =>
      onlyItself("agent/policy", () => false)(path, found) ||
      (within(path, "agent/policy") &&
        !isTest(path) &&
        /^(node:)?(fs|net|http|https|child_process)(\/|$)/.test(found.target)),
    planted: [
      ["agent/policy/policy.ts", `import { x } from "../stores/store.ts";`],
      ["agent/policy/policy.ts", `import { readFileSync } from "node:fs";`],
    ],
  },
  {
    name: "the store imports neither link nor http nor dispatch",
    reason: "it is named operations over plain data, runs in a worker, and knows no one above it",
    folders: ["cloud/store"],
    breaks: (path, { target }) =>
      within(path, "cloud/store") && !isTest(path) && /^cloud\/(link|http|dispatch|features|auth)\//.test(target),
    planted: [["cloud/store/sqlite-store.ts", `import { a } from "../http/api.ts";`]],
  },
  {
    name: "http does not know the link",
    reason: "a request asks the dispatcher; which process holds the session is not its business",
    folders: ["cloud/http", "cloud/link"],
    breaks: (path, { target }) => within(path, "cloud/http") && !isTest(path) && within(target, "cloud/link"),
    planted: [["cloud/http/artifacts.ts", `import type { Sessions } from "../link/sessions.ts";`]],
  },
  {
    name: "the page knows the types of cloud/http/api.ts and nothing behind them",
    reason: "what a browser gets must be no more than what the API shows, and no server code may reach the bundle",
    folders: ["cloud/web"],
    breaks: (path, found) =>
      within(path, "cloud/web") &&
      !isTest(path) &&
      isOurs(found) &&
      !within(found.target, "cloud/web") &&
      !(found.target === "cloud/http/api.ts" && found.typeOnly),
    planted: [
      ["cloud/web/api/client.ts", `import { agentSchema } from "../../http/api.ts";`],
      ["cloud/web/api/client.ts", `import type { Store } from "../../store/store.ts";`],
      ["cloud/web/pages/a.tsx", `import { x } from "@sallyport/protocol";`],
    ],
  },
  {
    name: "the command line speaks HTTP only",
    reason: "it is one client among others and must not be able to do what the API cannot",
    folders: ["cloud/cli"],
    breaks: onlyItself("cloud/cli", (found) => found.target === "cloud/http/api.ts" && found.typeOnly),
    planted: [["cloud/cli/main.ts", `import { openStore } from "../store/store.ts";`]],
  },
  {
    name: "the demo starts the programs and imports none of them",
    reason: "it shows two programs that share nothing but the link",
    folders: ["packaging/demo"],
    breaks: onlyItself("packaging/demo", (found) => found.target === "cloud/http/api.ts" && found.typeOnly),
    planted: [["packaging/demo/stack.ts", `import { start } from "../../cloud/main.ts";`]],
  },
];

// ---- reading the sources

const SKIPPED = new Set(["node_modules", "dist", "fixtures", ".git", ".tap"]);

function* filesUnder(folder: string): Generator<string> {
  for (const entry of readdirSync(join(repository, folder), { withFileTypes: true })) {
    if (SKIPPED.has(entry.name) || entry.name.startsWith(".dist-")) continue;
    const path = folder === "" ? entry.name : `${folder}/${entry.name}`;
    if (entry.isDirectory()) yield* filesUnder(path);
    else if (entry.isFile()) yield path;
  }
}

/** Static, re-exporting and dynamic imports. A statement begins a line, so that one quoted in a text does not count. */
function importsOf(path: string, text: string): Import[] {
  const found: Import[] = [];
  const add = (specifier: string, typeOnly: boolean) => {
    const target = specifier.startsWith(".") ? posix.normalize(posix.join(posix.dirname(path), specifier)) : specifier;
    found.push({ target, typeOnly });
  };
  for (const match of text.matchAll(
    /^[ \t]*(?:import|export)\b([^"';()=]*?\bfrom[ \t\n]*)?[ \t]*["']([^"'\n]+)["']/gm,
  )) {
    add(match[2] ?? "", /^\s+type\s/.test(match[1] ?? ""));
  }
  for (const match of text.matchAll(/\bimport\(\s*["']([^"'\n]+)["']/g)) add(match[1] ?? "", false);
  return found;
}

/** Its planted violations are no imports. */
const thisFile = "test/contract/boundaries.test.ts";
const code = /\.(ts|tsx|mjs)$/;
const sources: Source[] = ["protocol", "agent", "cloud", "packaging", "test"].flatMap((folder) =>
  [...filesUnder(folder)]
    .filter((path) => code.test(path) && path !== thisFile)
    .map((path) => ({ path, imports: importsOf(path, readFileSync(join(repository, path), "utf8")) })),
);

// ---- the rules

t.test("imports are read in every form", async (t) => {
  const text = [
    `import a, { b } from "./a.ts";`,
    `import type {\n  C,\n} from "../c.ts";`,
    `export * from "./d.ts";`,
    `export type { E } from '../features/e.ts';`,
    `import "./f.ts";`,
    `const g = await import("./g.ts");`,
    `import { type H } from "zod";`,
    `const text = 'import { no } from "./no.ts"';`,
    `export const from = "not an import";`,
  ].join("\n");
  t.same(importsOf("agent/link/x.ts", text), [
    { target: "agent/link/a.ts", typeOnly: false },
    { target: "agent/c.ts", typeOnly: true },
    { target: "agent/link/d.ts", typeOnly: false },
    { target: "agent/features/e.ts", typeOnly: true },
    { target: "agent/link/f.ts", typeOnly: false },
    { target: "zod", typeOnly: false },
    { target: "agent/link/g.ts", typeOnly: false },
  ]);
});

for (const rule of rules) {
  t.test(rule.name, async (t) => {
    for (const folder of rule.folders) {
      t.ok(
        sources.some(({ path }) => within(path, folder)),
        `${folder} holds sources`,
      );
    }
    const broken = sources.flatMap(({ path, imports }) =>
      imports.filter((found) => rule.breaks(path, found)).map(({ target }) => `${path} imports ${target}`),
    );
    t.same(broken, [], `because ${rule.reason}`);
    for (const [path, statement] of rule.planted) {
      const caught = importsOf(path, statement).some((found) => rule.breaks(path, found));
      t.ok(caught, `would catch ${statement} in ${path}`);
    }
  });
}

t.test("a capability has one name in agent and protocol: one search shows all of it", async (t) => {
  const folders = readdirSync(join(repository, "agent/features"), { withFileTypes: true }).filter((entry) =>
    entry.isDirectory(),
  );
  const files = readdirSync(join(repository, "protocol/features")).filter((file) => !file.endsWith(".test.ts"));
  t.same(folders.map(({ name }) => name).sort(), files.map((file) => file.replace(/\.ts$/, "")).sort());
});

t.test("every relative import leads to a file", async (t) => {
  const lost = sources.flatMap(({ path, imports }) =>
    imports
      .filter(
        ({ target }) =>
          /^(protocol|agent|cloud|packaging|test)\//.test(target) && !existsSync(join(repository, target)),
      )
      .map(({ target }) => `${path} imports ${target}`),
  );
  t.same(lost, []);
});

// ---- the tree as a whole

t.test("the lockfile names no registry host: whoever installs decides where from", async (t) => {
  const lock = readFileSync(join(repository, "package-lock.json"), "utf8");
  t.same(lock.match(/"resolved":\s*"[a-z+]+:\/\/[^"]*"/g) ?? [], []);
  t.notMatch(readFileSync(join(repository, ".npmrc"), "utf8"), /registry\s*=/);
});

t.test("no file names a folder of the machine it was written on", async (t) => {
  const here = `${dirname(repository)}/${relative(dirname(repository), repository)}/`;
  const personal = new RegExp(
    `(^|[^A-Za-z0-9_.])/${"(home|Users)"}/[a-z][a-z0-9._-]*/|(^|[^A-Za-z0-9_.])/root/[A-Za-z0-9._-]`,
    "m",
  );
  const named = [...filesUnder("")]
    .filter((path) => statSync(join(repository, path)).size < 2_000_000)
    .filter((path) => path !== thisFile && !path.endsWith(".log"))
    .filter((path) => {
      const text = readFileSync(join(repository, path), "latin1");
      return text.includes(here) || personal.test(text);
    });
  t.same(named, []);
});
