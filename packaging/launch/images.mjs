// npm run images: our container images, built with the local docker client into the Engine that DOCKER_HOST (or its
// context) names, without any registry: packaging/images makes their layers out of node_modules and the compiled tree.
// `npm run images -- agent cloud` builds only those; --help names the options.
import { spawnSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { LaunchError, ensureInstalled, root, run, say, script } from "./launch.mjs";

const USAGE = `npm run images -- [NAME...] [options]

  NAME               agent, agent-serving, cloud, serving; default: all
  --prefix PREFIX    of the images' names; default sallyport/
  --tag TAG          beside the version's; default latest
  --base IMAGE       what they are built on instead of nothing (scratch): glibc 2.28 or newer, libstdc++
  --init FILE        the static init that becomes their first process; default: tini-static or docker-init of this machine
  --prepare          only make the layers, in .cache/images; docker build is yours
  --json             one JSON object for each image instead of a table
`;

const AGENT = {
  workspaces: ["agent"],
  commands: { "sallyport-agent": "agent/bin/sallyport-agent.mjs" },
  // A named volume takes the mode of the folder it is first mounted on: any user may make its own folder in it.
  shared: ["var/lib/sallyport", "data"],
  folders: ["etc/sallyport"],
};
const SERVING = {
  workspaces: ["packaging/serving"],
  commands: { "sallyport-serving": "packaging/serving/main.js" },
};
const CLOUD = {
  workspaces: ["cloud"],
  commands: { "sallyport-cloud": "cloud/bin/sallyport-cloud.mjs", sallyport: "cloud/bin/sallyport.mjs" },
  shared: ["var/lib/sallyport-cloud", "run/enrol", "run/keys", "run/shared"],
  files: { "cloud-health.mjs": "packaging/images/cloud-health.mjs" },
};

/** `layers`: files beside the system's in the folder that docker is given. */
const IMAGES = {
  agent: { file: "Dockerfile.agent", target: "agent", version: "agent", layers: { "agent.tar": AGENT } },
  "agent-serving": {
    file: "Dockerfile.agent",
    target: "agent-serving",
    version: "agent",
    layers: { "agent.tar": AGENT, "serving.tar": { ...SERVING, shell: true } },
  },
  cloud: { file: "packaging/Dockerfile.cloud", target: "cloud", version: "cloud", layers: { "cloud.tar": CLOUD } },
  serving: {
    file: "packaging/serving/Dockerfile",
    target: "serving",
    version: "packaging/serving",
    layers: { "serving.tar": SERVING },
  },
};

const docker = (args) => spawnSync("docker", args, { encoding: "utf8" });

function checkEngine() {
  const answer = docker(["version", "--format", "{{.Server.Version}} {{.Server.Os}} {{.Server.Arch}}"]);
  if (answer.error?.code === "ENOENT")
    throw new LaunchError("there is no docker client in PATH. Install one, or make the layers alone: --prepare.");
  const host = process.env.DOCKER_HOST ?? "its context";
  if (answer.status !== 0)
    throw new LaunchError(
      `no Docker Engine answers at ${host}: ${answer.stderr.trim().split("\n").at(-1)}. Start one, or name its socket in DOCKER_HOST.`,
    );
  const [, os, arch] = answer.stdout.trim().split(" ");
  const own = { x64: "amd64", arm64: "arm64" }[process.arch];
  if (os !== "linux" || arch !== own)
    throw new LaunchError(
      `the Engine at ${host} is ${os}/${arch}, and what is built here is for linux/${own}: an image is made on its own architecture.`,
    );
}

function build(name, { base, version }, names) {
  const { file, target } = IMAGES[name];
  const args = ["build", "--quiet", "--file", join(root, file), "--target", target];
  args.push("--build-arg", `BASE=${base}`, "--build-arg", `VERSION=${version}`);
  for (const each of names) args.push("--tag", each);
  // Its remarks are shown when it fails: the classic builder announces its own end at each build.
  const built = docker([...args, join(root, ".cache/images", name)]);
  if (built.status === 0) return;
  say(`${built.stdout}${built.stderr}`.trim());
  throw new LaunchError(`the image ${names[0]} could not be built: docker ended with exit code ${built.status}.`);
}

await script(async () => {
  const { values: options, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      prefix: { type: "string", default: "sallyport/" },
      tag: { type: "string", default: "latest" },
      base: { type: "string", default: "scratch" },
      init: { type: "string" },
      prepare: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (options.help) return void process.stdout.write(USAGE);
  const wanted = positionals.length > 0 ? positionals : Object.keys(IMAGES);
  const unknown = wanted.filter((name) => !Object.hasOwn(IMAGES, name));
  if (unknown.length > 0)
    throw new LaunchError(`no such image: ${unknown.join(", ")}. There are: ${Object.keys(IMAGES).join(", ")}.`);
  if (process.platform !== "linux")
    throw new LaunchError("images are made on Linux: they are filled from the machine.");
  if (!options.prepare) checkEngine();
  await ensureInstalled();
  const compile = [join(root, "packaging/launch/build.mjs"), "--if-changed"];
  const compiled = await run(process.execPath, compile, { stdio: ["ignore", 2, "inherit"] });
  if (compiled !== 0) return compiled;

  // Read only now: what it needs is installed.
  const { MissingPart, appLayer, sourceTime, systemLayer, versionOf } = await import("../images/rootfs.mjs");
  const time = sourceTime(root);
  const rows = [];
  try {
    for (const name of wanted) {
      const folder = join(root, ".cache/images", name);
      mkdirSync(folder, { recursive: true });
      systemLayer(join(folder, "system.tar"), { root, bare: options.base === "scratch", init: options.init });
      for (const [file, layer] of Object.entries(IMAGES[name].layers))
        appLayer(join(folder, file), { root, time, ...layer });
      if (options.prepare) {
        say(`${name}: docker build --file ${IMAGES[name].file} --target ${IMAGES[name].target} ${folder}`);
        continue;
      }
      const version = versionOf(root, IMAGES[name].version);
      const names = [...new Set([options.tag, version])].map((tag) => `${options.prefix}${name}:${tag}`);
      build(name, { base: options.base, version }, names);
      const seen = docker(["image", "inspect", "--format", "{{.Id}} {{.Size}}", names[0]]);
      const [id, size] = seen.stdout.trim().split(" ");
      if (seen.status !== 0 || id === undefined)
        throw new LaunchError(`the image ${names[0]} was built and cannot be inspected: ${seen.stderr.trim()}`);
      rows.push({ name: names[0], version: names.at(-1), id, sizeBytes: Number(size) });
    }
  } catch (error) {
    if (error instanceof MissingPart) throw new LaunchError(error.message);
    throw error;
  }
  if (options.json) for (const row of rows) console.log(JSON.stringify(row));
  else
    for (const { name, id, sizeBytes } of rows)
      console.log(`${name.padEnd(34)} ${(sizeBytes / 1e6).toFixed(1).padStart(7)} MB  ${id}`);
});
