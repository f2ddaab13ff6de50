// What a start tells whoever looks: lines for a person at a terminal, one record for what collects logs.
import type { AgentContext } from "./context.ts";
import type { Membership } from "./membership.ts";
import type { Parts } from "./parts.ts";
import type { OpenState } from "./state.ts";

export interface GreetingFacts {
  membership: Membership;
  state: OpenState;
  parts: Parts;
  /** Commands taken up from before. */
  resumed: number;
}

export function greet(context: AgentContext, { membership, state, parts, resumed }: GreetingFacts): void {
  const { config } = context.compiled;
  const { names, cloudUrl } = membership;
  const rows = {
    version: context.version,
    state: `${config.state} (writable, start ${state.journal.startCounter})`,
    cloud: cloudUrl,
    identity: names === null ? "none yet: enrolling" : `${names.replica} in pool ${names.pool} of ${names.workspace}`,
    stores: config.stores.map((one) => `${one.id} (${one.kind})`).join(", ") || "none",
    programs: Object.keys(config.programs).join(", ") || "none",
    policy: parts.policy.digest.slice(0, 12),
    intake: parts.intake.paused === null ? "open" : "paused",
    resumed: `${resumed} commands from before`,
  };
  if (process.stdout.isTTY) {
    const lines = Object.entries(rows).map(([key, value]) => `  ${key.padEnd(9)} ${value}`);
    process.stdout.write(context.redactor.text(`sallyport-agent\n${lines.join("\n")}\n`));
  } else context.log.info(rows, "started");
}
