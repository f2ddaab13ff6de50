// The demo: a control plane, an agent with a private store, and the story of the two. `--once` tells it through the API
// without a person, checks each step and ends; otherwise it prints a sign-in URL and keeps running.
import { createInterface, emitKeypressEvents } from "node:readline";
import { Stack } from "./stack.ts";
import { Story } from "./story.ts";

const once = process.argv.includes("--once");
const unknown = process.argv.slice(2).filter((argument) => argument !== "--once");
if (unknown.length > 0) {
  process.stderr.write(`demo: ${unknown[0]} is not an option. npm run demo [-- --once]\n`);
  process.exit(2);
}

const say = (text: string) => process.stdout.write(`${text}\n`);
const stack = new Stack();
const story = new Story(stack);
let removing: Promise<void> | null = null;
const remove = () => (removing ??= stack.remove());

// From the first moment on, whatever ends us stops and removes what we started: the programs are process groups of their
// own, which no signal of the terminal reaches. A terminal that went away (SIGHUP) also fails every write to it.
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
const ended = new Promise<number>((resolve) => {
  for (const [name, code] of Object.entries(SIGNALS)) process.on(name, () => resolve(code));
  process.stdout.on("error", () => resolve(1));
  process.stderr.on("error", () => resolve(1));
});

const began = performance.now();
async function step(title: string, work: () => Promise<string>): Promise<void> {
  const start = performance.now();
  const seen = await work();
  say(`  ✓ ${title.padEnd(40)} ${((performance.now() - start) / 1000).toFixed(2).padStart(6)} s   ${seen}`);
}

async function open(): Promise<void> {
  await step("the control plane starts", async () => {
    await stack.startCloud();
    await stack.api.signIn(stack.firstSignInUrl());
    await stack.preparePrivateSide();
    return stack.url;
  });
  await step("the agent connects", () => story.connect());
}

async function tellOnce(): Promise<void> {
  say("Sallyport demo, once through:");
  await open();
  await step("browse the private store", () => story.browse());
  await step("look at five kinds of artifact", () => story.look());
  await step("fetch a file", () => story.download());
  await step("run the pipeline, follow its log", () => story.train((line) => say(`      ${line}`)));
  await step("look at metrics, plot and model", () => story.results());
  await step("deploy the model by its digest", () => story.deploy());
  await step("predict, by the page and at the endpoint", () => story.predict());
  await step("scale to two replicas", () => story.scale());
  await step("kill a replica, see it return", () => story.heal());
  await step("stop the agent", () => story.disconnect());
  await step("start the agent again", () => story.reconnect());
  await remove();
  say(`Done in ${((performance.now() - began) / 1000).toFixed(1)} s: everything stopped and removed.`);
}

async function keepRunning(): Promise<void> {
  say("Sallyport demo");
  await open();
  say(`
  Open    ${await stack.newSignInUrl()}
          (works once, for 15 minutes; l makes another)

  In the page: Agents, then Artifacts (pool demo, store sample): images/digits.png, data/digits.csv, README.md, logs/.
  Runs, New run, take pipelines/digits.pipeline.json from the store, start it, follow the log of train;
  then look at its outputs: model, metrics, plot. On model.onnx: Deploy; then try it, scale it, kill a replica.

  On the command line: sallyport login URL, then see Deploying in the README. At the agent, as its owner:
  sallyport-agent ps --config ${stack.folder}/private/agent.yaml

  The private side is ${stack.folder}/private: nothing of it is readable by the control plane.
  Keys:   s stop the agent   a start it again   l new sign-in URL   q quit`);
  const act = async (key: string): Promise<void> => {
    if (key === "s") {
      await stack.stopAgent();
      say("  agent stopped: the page says so within 15 seconds. a starts it again.");
    } else if (key === "a") {
      if (stack.agentRuns) {
        say("  the agent runs already.");
        return;
      }
      stack.startAgent();
      say("  agent started: it needs nothing but its state folder.");
    } else if (key === "l") {
      say(`  ${await stack.newSignInUrl()}`);
    }
  };
  const quit = new Promise<void>((resolve) => {
    if (process.stdin.isTTY) {
      emitKeypressEvents(process.stdin);
      process.stdin.setRawMode(true);
      process.stdin.on("keypress", (_text, key: { name?: string; ctrl?: boolean }) => {
        if (key.name === "q" || (key.ctrl === true && key.name === "c")) resolve();
        else act(key.name ?? "").catch((error: unknown) => say(`  ${String(error)}`));
      });
    } else {
      createInterface(process.stdin).on("line", (line) =>
        line.trim() === "q" ? resolve() : void act(line.trim()).catch((error: unknown) => say(`  ${String(error)}`)),
      );
    }
  });
  process.stdin.on("error", () => {}); // the terminal went away: SIGHUP says so
  await quit;
}

try {
  const code = await Promise.race([ended, (once ? tellOnce() : keepRunning()).then(() => 0)]);
  if (!once || code !== 0) say("  stopping");
  await remove();
  process.exit(code);
} catch (error) {
  process.stderr.write(
    `\ndemo: ${error instanceof Error ? error.message : String(error)}\n--- cloud, last lines\n${stack.tail("cloud")}\n--- agent, last lines\n${stack.tail("agent")}\n`,
  );
  await remove();
  process.exit(1);
}
