// What the agent answers at its own host, each act of a person kept in the audit.
import type { IncomingMessage, ServerResponse } from "node:http";
import { userInfo } from "node:os";
import { answerProbe } from "../metrics/index.ts";
import { ControlServer, type ControlOperations } from "../control/index.ts";
import type { AgentContext } from "./context.ts";
import { endpointsOf } from "./deployments.ts";
import type { WatchedLink } from "./link.ts";
import type { Parts } from "./parts.ts";
import { answerPs, type PsSources } from "./ps.ts";
import { stopHere } from "./stop.ts";

/** In a container the user may be a number that nobody named. */
function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return `uid ${process.getuid?.() ?? "unknown"}`;
  }
}

/** Not listening yet. */
export function makeControl(context: AgentContext, sources: PsSources): ControlServer {
  const { parts, watched } = sources;
  const { log } = context;
  const { audit } = sources.state;
  const { intake, pauseFile } = parts;
  const stateDir = context.compiled.config.state;
  const who = `local:${userName()}`;
  const operations: ControlOperations = {
    ps: () => answerPs(context, sources),
    pause: async (wanted) => {
      pauseFile.write(wanted);
      intake.pause(wanted);
      audit.append({ event: "intake.paused", who, note: wanted.reason });
      log.info({ until: wanted.until }, `intake paused: ${wanted.reason}`);
      return { paused: true };
    },
    resume: async () => {
      const paused = intake.paused !== null;
      pauseFile.write(null);
      intake.resume();
      audit.append({ event: "intake.resumed", who });
      log.info("intake resumed");
      return { paused };
    },
    stop: async (id) => {
      const stopped = await stopHere(parts, { id, who, stateDir });
      audit.append({ event: "local.stop", who, note: `${id ?? "all"}: ${stopped.join(", ")}` });
      log.info({ stopped }, "stopped at the agent's host");
      return { stopped };
    },
    ready: async () => readiness(parts, watched),
    endpoints: async () => endpointsOf(parts),
  };
  const { figures } = parts.telemetry;
  // Who reaches the socket is the agent's own user: no token.
  const probe = { figures, ready: () => readiness(parts, watched).ready };
  const http = (request: IncomingMessage, response: ServerResponse) =>
    void answerProbe(request, response, probe, async () => true);
  return new ControlServer(stateDir, operations, http);
}

function readiness({ intake }: Parts, { link, watch }: WatchedLink): { ready: boolean; why: string } {
  if (intake.draining) return { ready: false, why: "The agent is stopping." };
  if (link.state === "online") return { ready: true, why: "The link is up." };
  return { ready: false, why: `The link is ${link.state}${watch.problem === null ? "" : `: ${watch.problem}`}.` };
}
