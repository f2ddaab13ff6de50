// `sallyport`: the control plane's API on the command line. Noun, then verb; data on stdout, words on stderr.
import { Command, CommanderError } from "commander";
import { accountCommands } from "./account.ts";
import { agentCommands } from "./agents.ts";
import { artifactCommands } from "./artifacts.ts";
import { Client, textOf } from "./client.ts";
import { commandCommands } from "./commands.ts";
import { loadContext } from "./context.ts";
import { deploymentCommands } from "./deployments.ts";
import { EXIT, explain } from "./exit.ts";
import { poolCommands } from "./pools.ts";
import { runCommands } from "./runs.ts";

const program = new Command("sallyport")
  .description("The control plane's API on the command line")
  .showSuggestionAfterError()
  .exitOverride()
  .addHelpText(
    "after",
    `
Examples:
  sallyport login https://sallyport.example
  sallyport artifact ls lab/lake/data
  sallyport artifact get lab/lake/data/train.csv
  sallyport run start digits.pipeline.json --pool lab -p epochs=20 --follow
  sallyport command explain 0199...        why it waits, or what became of it
  sallyport deployment apply -f digits.deployment.yaml --wait
  sallyport deployment request digits -d @request.json

Exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 not found, 4 not signed in, 5 denied by policy, 6 conflict,
            7 agent or control plane not reached, 8 timeout, 130 interrupted
Environment: SALLYPORT_URL, SALLYPORT_TOKEN or SALLYPORT_TOKEN_FILE, SALLYPORT_CA, NO_COLOR, CLICOLOR_FORCE`,
  );

let made: Client | null = null;
const client = (): Client => (made ??= new Client(loadContext()));
accountCommands(program, client);
agentCommands(program, client);
artifactCommands(program, client);
runCommands(program, client);
commandCommands(program, client);
poolCommands(program, client);
deploymentCommands(program, client);
program
  .command("api")
  .description("call the API yourself")
  .argument("<method>")
  .argument("<path>", "e.g. /v1/agents")
  .argument("[body]", "JSON")
  .action(async (method: string, path: string, body: string | undefined) => {
    const json: unknown = body === undefined ? undefined : JSON.parse(body);
    process.stdout.write(
      `${await textOf(await client().open(path, { method: method.toUpperCase(), ...(json === undefined ? {} : { json }) }))}\n`,
    );
  });
for (const command of [program, ...program.commands.flatMap((noun) => [noun, ...noun.commands])])
  command.exitOverride();

process.once("SIGINT", () => process.exit(EXIT.interrupted));
// a reader that has seen enough (`| head`) is no failure
process.stdout.on("error", (error: NodeJS.ErrnoException) =>
  process.exit(error.code === "EPIPE" ? EXIT.ok : EXIT.failed),
);

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError)
    process.exitCode = error.exitCode === 0 || error.code === "commander.help" ? EXIT.ok : EXIT.usage;
  else process.exitCode = explain(error);
}
