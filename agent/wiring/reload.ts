// Puts a changed configuration in force, or keeps the old one when the new one is invalid.
import { toConnectorError } from "@sallyport/protocol";
import { describe } from "../config/cli.ts";
import { reload } from "../config/index.ts";
import type { AgentContext } from "./context.ts";
import type { Parts } from "./parts.ts";
import type { OpenState } from "./state.ts";

export function reloadConfig(context: AgentContext, { audit }: OpenState, parts: Parts): void {
  const { log } = context;
  const { changes, connections, deployments, pipelines, policy, runner } = parts;
  try {
    const { text, source } = context.readConfig();
    const { current, problem, needRestart } = reload(context.compiled, text, source, context.environment);
    if (problem !== null) throw problem;
    connections.replace(current.config);
    context.compiled = current;
    policy.replace(current.policy);
    runner.policyChanged();
    pipelines.policyChanged();
    deployments.policyChanged();
    changes.tell();
    audit.append({ event: "config.reloaded", who: "agent", note: `policy ${current.policy.digest}` });
    log.info({ policy: current.policy.digest.slice(0, 12) }, "configuration reloaded");
    for (const warning of current.warnings) log.warn(warning);
    if (needRestart.length > 0)
      log.warn({ sections: needRestart }, "these sections changed and count only from the next start");
  } catch (caught) {
    const error = toConnectorError(caught);
    log.error({ code: error.code }, `the configuration was not reloaded, the old one stays: ${describe(error).trim()}`);
  }
}
