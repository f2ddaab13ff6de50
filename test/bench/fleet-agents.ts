// Many light agents in one process: the link as it ships (identity, handshake, status stream, beats, backoff), nothing
// above it. Arguments: URL, folder for identities, then enrolment secrets on stdin, one a line. Tells how many are
// online whenever that changes, at most ten times a second.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { parseEnrolmentSecret } from "@sallyport/protocol";
import { startAgentEnd } from "../contract/link/agent-end.ts";

const [url, folder] = process.argv.slice(2);
const secrets = (await text(process.stdin)).trim().split("\n");
/** Not all in one tick: a fleet does not start as one. */
const PER_TICK = 2;

let online = 0;
let told = -1;
setInterval(() => {
  if (online === told || process.send === undefined) return;
  told = online;
  process.send({ online });
}, 100);
process.on("disconnect", () => process.exit(0));

for (const [n, secret] of secrets.entries()) {
  const stateDirectory = join(folder!, String(n));
  mkdirSync(stateDirectory, { recursive: true, mode: 0o700 });
  const agent = startAgentEnd({
    url: url!,
    enrolment: parseEnrolmentSecret(secret),
    stateDirectory,
    random: Math.random,
  });
  agent.link.observe((event) => {
    if (event.type === "online") online++;
    else if (event.type === "state" && event.from === "online") online--;
    agent.events.length = 0;
  });
  if (n % PER_TICK === 0) await new Promise((resolve) => setTimeout(resolve, 20));
}
