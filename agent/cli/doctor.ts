// `sallyport-agent doctor`: the way to the control plane, hop by hop. It asks no agent: it works before the enrolment, and
// beside a running agent without disturbing it.
import { readFileSync } from "node:fs";
import { ConnectorError, parseEnrolmentSecret, systemClock, type EnrolmentSecret } from "@sallyport/protocol";
import type { Command } from "commander";
import type { Config } from "../config/index.ts";
import { diagnose, renderDiagnosis, type Known } from "../doctor/index.ts";
import { IdentityStore, isNatsUrl, makeNatsRoute, makeNetwork, readPem, type Identity } from "../link/index.ts";
import { createRedactor } from "../redaction/index.ts";
import { openSecrets } from "../secrets/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

export function doctorCommand(program: Command, local: LocalCommands): void {
  program
    .command("doctor")
    .description("check the way to the control plane hop by hop; exit code 1 names the one that fails, and what to do")
    .option(...local.configOption)
    .option("-o, --output <format>", "text or json", "text")
    .action((options: { config?: string; output: string }) =>
      local.perform(options.config, async (stateDir, config) => {
        const { environment } = local;
        const held = new IdentityStore(stateDir).load()?.identity ?? null;
        const main = config.link.url ?? config.cloud.url ?? held?.cloudUrl ?? config.link.addresses[0];
        if (main === undefined)
          throw new ConnectorError("CONFIG_INVALID", "The agent does not know the address of its control plane.", {
            fix: "Set cloud.url in the configuration, or SALLYPORT_URL.",
          });
        const redactor = createRedactor();
        const secrets = openSecrets({ ...config.secrets, environment, redactor, clock: systemClock });
        try {
          const helpers = {
            resolveSecret: async (text: string, signal: AbortSignal) => (await secrets.resolve(text, signal)).reveal(),
            hide: (secret: string) => redactor.add(secret),
          };
          const network = makeNetwork({ ...config.link, ...helpers, environment });
          const nats = isNatsUrl(main)
            ? makeNatsRoute({ url: main, nats: config.link.nats, network, ...helpers })
            : null;
          const diagnosis = await diagnose({
            addresses: nats === null ? [...new Set([main, ...config.link.addresses])] : [main],
            network,
            nats,
            known: knownOf(config, held, held === null ? enrolmentOf(environment) : null),
            clock: systemClock,
            signal: new AbortController().signal,
          });
          local.write(
            options.output === "json"
              ? `${JSON.stringify(redactor.json(diagnosis))}\n`
              : redactor.text(renderDiagnosis(diagnosis)),
          );
          return diagnosis.ok ? EXIT.ok : EXIT.failed;
        } finally {
          secrets.close();
        }
      }),
    );
}

function knownOf({ cloud }: Config, held: Identity | null, secret: EnrolmentSecret | null): Known {
  const pins = held?.identityFingerprints ?? (secret === null ? null : [secret.identityFingerprint]);
  const pinsFrom = held !== null ? "the control plane that this agent joined" : "the enrolment secret";
  if (cloud.ca !== null)
    return {
      ca: readPem(cloud.ca, "cloud.ca"),
      caFrom: `cloud.ca (${cloud.ca}) alone`,
      caFingerprint: null,
      pins,
      pinsFrom,
    };
  if (held !== null && held.ca !== null)
    return { ca: held.ca, caFrom: "the CA that it learned when it joined", caFingerprint: null, pins, pinsFrom };
  return {
    ca: null,
    caFrom: secret?.caFingerprint ? "the CA that the enrolment secret names" : "the CAs of this machine",
    caFingerprint: secret?.caFingerprint ?? null,
    pins,
    pinsFrom,
  };
}

/** Only looked at: it stays good. */
function enrolmentOf(environment: LocalCommands["environment"]): EnrolmentSecret | null {
  const file = environment["SALLYPORT_ENROLL_SECRET_FILE"];
  let text = environment["SALLYPORT_ENROLL_SECRET"];
  if (text === undefined && file) {
    try {
      text = readFileSync(file, "utf8");
    } catch {
      return null; // not there any more, or not yet: the rest can be walked without it
    }
  }
  return text === undefined || text.trim() === "" ? null : parseEnrolmentSecret(text);
}
