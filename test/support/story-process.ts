// The engine `process` for the deploying story: replicas are processes of this machine, found by the mark that the
// process host puts in their environment.
import { readdirSync, readFileSync } from "node:fs";
import { entryFile } from "./launcher.ts";
import type { StoryEngine } from "./deploy-story.ts";

interface Replica {
  name: string;
  pid: number;
}

/** The serving programs of a deployment, without the shells around them. */
function replicasOf(deployment: string): Replica[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const mark = readFileSync(`/proc/${pid}/environ`, "utf8")
          .split("\0")
          .find((line) => line.startsWith(`SALLYPORT_WORK=${deployment}.`));
        if (mark === undefined || !readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("\0--model\0")) return [];
        if (readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("sallyport-work")) return [];
        return [{ name: mark.slice(`SALLYPORT_WORK=${deployment}.`.length), pid: Number(pid) }];
      } catch {
        return []; // ended meanwhile
      }
    });
}

export function processEngine(): StoryEngine {
  const kill: StoryEngine["killReplica"] = async (_agent, deployment, replica) => {
    const found = replicasOf(deployment).find((one) => one.name === replica);
    if (found === undefined) throw new Error(`no process of ${replica}`);
    process.kill(found.pid, "SIGKILL");
  };
  return {
    name: "process",
    config: `
programs: { node: { path: ${process.execPath} } }
serving:
  listen: LISTEN
  process: { path: ${process.execPath}, args: [${JSON.stringify(entryFile("packaging/serving/main"))}] }
`,
    killReplica: kill,
    removeReplica: kill,
    running: async (_agent, deployment) => replicasOf(deployment).map(({ name, pid }) => `${name}:${pid}`),
  };
}
