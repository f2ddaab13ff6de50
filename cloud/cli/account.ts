// `sallyport login`, `logout`, `whoami`. A token is never an argument: other users of the machine can read those.
import { hostname, userInfo } from "node:os";
import { createInterface } from "node:readline/promises";
import type { Command } from "commander";
import type { Me } from "../http/api.ts";
import { Client, textOf } from "./client.ts";
import { forgetContext, loadContext, readCa, saveContext, type Context } from "./context.ts";
import { EndWith, EXIT } from "./exit.ts";
import { formatOf, printOne } from "./output.ts";

export function accountCommands(program: Command, client: () => Client): void {
  program
    .command("login")
    .description("sign in with a one-time sign-in URL, or with an API token given on stdin")
    .argument("<url>", "the control plane's URL, or a sign-in URL (…/signin#…)")
    .option("--ca <file>", "PEM of the authority that signed the control plane's certificate")
    .action(async (text: string, options: { ca?: string }) => {
      let url: URL;
      try {
        url = new URL(text);
        if (!["http:", "https:"].includes(url.protocol)) throw new TypeError(url.protocol);
      } catch {
        throw new EndWith(
          EXIT.usage,
          `${text.slice(0, 40)} is not a URL; give the control plane's, e.g. https://sallyport.example`,
        );
      }
      const context: Context = { url: url.origin, token: "", ca: options.ca === undefined ? null : readCa(options.ca) };
      context.token = url.hash.length > 1 ? await spend(context, url.hash.slice(1)) : await readToken(context.url);
      const me = await new Client(context).json<Me>("/v1/me");
      saveContext(context);
      process.stderr.write(`signed in to ${context.url} as ${me.user.name}, workspace ${me.workspace.name}\n`);
    });

  program
    .command("logout")
    .description("forget the token of this machine")
    .action(async () => {
      process.stderr.write(
        forgetContext()
          ? "signed out; revoke the token in the page's settings if the file was copied\n"
          : "not signed in\n",
      );
    });

  program
    .command("whoami")
    .description("who the token acts as")
    .option("-o, --output <format>", "table, json or name", "table")
    .action(async (options: { output: string }) => {
      const me = await client().json<Me>("/v1/me");
      printOne(
        me,
        formatOf(options.output),
        [
          ["user", me.user.name],
          ["role", me.user.role],
          ["workspace", me.workspace.name],
          ["control plane", `${loadContext().url}, version ${me.version}`],
        ],
        me.user.name,
      );
    });
}

/** A sign-in URL works once: it is exchanged for a token of this machine. */
async function spend(context: Context, signin: string): Promise<string> {
  const client = new Client(context);
  const session = await client.open("/v1/session", { json: { signin }, headers: { origin: context.url } });
  await textOf(session);
  const cookie = (session.headers["set-cookie"] ?? []).map((line) => line.split(";")[0]).join("; ");
  const made = await client.json<{ token: string }>("/v1/tokens", {
    json: { label: `cli ${userInfo().username}@${hostname()}`.slice(0, 100), expiresInDays: 90 },
    headers: { origin: context.url, cookie },
  });
  await textOf(await client.open("/v1/session", { method: "DELETE", headers: { origin: context.url, cookie } }));
  return made.token;
}

async function readToken(url: string): Promise<string> {
  if (process.stdin.isTTY) process.stderr.write(`Make a token at ${url}/settings, then paste it here: `);
  const lines = createInterface({ input: process.stdin, terminal: false });
  for await (const line of lines) {
    lines.close();
    if (/^spt_\S+$/.test(line.trim())) return line.trim();
    throw new EndWith(EXIT.usage, "that is not an API token: those begin with spt_");
  }
  throw new EndWith(EXIT.usage, "no token on stdin; pipe one in, or use a sign-in URL");
}
