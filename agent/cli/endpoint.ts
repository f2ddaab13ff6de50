// `sallyport-agent endpoint`: where deployments answer in this network, and the keys that open them. Keys are made and
// kept here; the control plane never has one.
import { ConnectorError } from "@sallyport/protocol";
import type { Command } from "commander";
import { askAgent, type LocalEndpoint } from "../control/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

export function endpointCommand(program: Command, local: LocalCommands): void {
  program
    .command("endpoint")
    .description("the address of a deployment's endpoint and its key; without a name, of all")
    .argument("[name]", "the deployment")
    .option("-o, --output <format>", "text, json, or key: the key alone, for scripts", "text")
    .option(...local.configOption)
    .action((name: string | undefined, options: { config?: string; output: string }) =>
      local.perform(options.config, async (stateDir) => {
        if (!["text", "json", "key"].includes(options.output) || (options.output === "key" && name === undefined))
          throw new ConnectorError("INPUT_INVALID", "How is it to be printed?", {
            fix: "--output text, json, or (with a name) key.",
          });
        const all = (await askAgent(stateDir, { op: "endpoints" })) as LocalEndpoint[];
        const found = name === undefined ? all : all.filter((one) => one.name === name);
        if (name !== undefined && found.length === 0)
          throw new ConnectorError("DEPLOYMENT_UNKNOWN", `This agent has no deployment ${name}.`, {
            fix: all.length === 0 ? "It has none yet." : `It has: ${all.map((one) => one.name).join(", ")}.`,
          });
        if (options.output === "key") local.write(`${found[0]!.key}\n`);
        else if (options.output === "json") local.write(`${JSON.stringify(found)}\n`);
        else local.write(found.length === 0 ? "There is no deployment.\n" : found.map(describe).join("\n"));
        return EXIT.ok;
      }),
    );
}

const describe = ({ name, url, key, ready, wanted }: LocalEndpoint): string =>
  `${name}  ${ready} of ${wanted} replicas ready\n  address  ${url}\n  key      ${key}\n  try      curl -H "Authorization: Bearer ${key}" ${url}/v2/models/${name}\n`;
