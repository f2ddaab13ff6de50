// Which control plane this agent belongs to, or is to join: found out before anything is begun.
import { ConnectorError, type EnrolmentSecret } from "@sallyport/protocol";
import { IdentityStore, readPem, type Identity } from "../link/index.ts";
import type { AgentContext } from "./context.ts";
import { readEnrolment } from "./enrolment-input.ts";

export interface Membership {
  identity: IdentityStore;
  /** Names in the control plane; null = it has not joined yet. */
  names: Identity["names"] | null;
  /** Null when it has joined. */
  enrolment: EnrolmentSecret | null;
  /** What is dialled: of the control plane, or of a NATS server. */
  cloudUrl: string;
  /** PEM; null = the system's certificate authorities, or what the enrolment says. */
  ca: string | null;
}

/** Throws CONFIG_INVALID when it neither belongs nor can join. */
export function findMembership(context: AgentContext): Membership {
  const { config } = context.compiled;
  const identity = new IdentityStore(config.state);
  const held = identity.load();
  const enrolment = readEnrolment(context.environment, context.redactor, held === null);
  if (held === null && enrolment === null) {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `This agent has not joined a control plane yet: ${config.state} holds no identity, and there is no enrolment secret.`,
      {
        fix: "Make one on the page Add agent, and start the agent with it in SALLYPORT_ENROLL_SECRET (or its file's path in SALLYPORT_ENROLL_SECRET_FILE).",
      },
    );
  }
  const { ca } = config.cloud;
  const cloudUrl = config.link.url ?? config.cloud.url ?? held?.identity.cloudUrl ?? config.link.addresses[0] ?? null;
  if (cloudUrl === null) {
    throw new ConnectorError("CONFIG_INVALID", "The agent does not know the address of its control plane.", {
      fix: "Set cloud.url in the configuration, or SALLYPORT_URL.",
    });
  }
  return {
    identity,
    names: held?.identity.names ?? null,
    enrolment,
    cloudUrl,
    ca: ca === null ? null : readPem(ca, "cloud.ca"),
  };
}
