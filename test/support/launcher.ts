// Starts built programs as a user's shell would: own process, clean environment, collected output, killed when the
// test ends. Knows nothing of what the programs do.
import { spawn } from "node:child_process";
import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

/** What the helpers here need of a tap test. */
export interface Teardown {
  teardown(fn: () => unknown): void;
}

export const repository: string = fileURLToPath(new URL("../../", import.meta.url)).replace(/[/\\]$/, "");

/** "source" or, with SALLYPORT_TEST_TREE=dist, the compiled tree that `npm run build` makes. */
export const tree: "source" | "dist" = process.env["SALLYPORT_TEST_TREE"] === "dist" ? "dist" : "source";

/** Path of a program's entry in the tree under test: `entryFile("agent/main")`. */
export function entryFile(base: string, which: "source" | "dist" = tree): string {
  return which === "dist" ? join(repository, "dist", `${base}.js`) : join(repository, `${base}.ts`);
}

/** Path of a program's start script in the tree under test, which is what a user runs: `binFile("agent/bin/sallyport-agent")`. */
export function binFile(base: string, which: "source" | "dist" = tree): string {
  return join(repository, which === "dist" ? "dist" : "", `${base}.mjs`);
}

/** The few variables a program needs to run, without tap's, CI's or the developer's own. */
export function cleanEnv(extra: Readonly<Record<string, string>> = {}): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of ["PATH", "HOME", "LANG", "TZ", "TMPDIR", "SystemRoot"]) {
    const value = process.env[name];
    if (value !== undefined) env[name] = value;
  }
  return { ...env, ...extra };
}

/** A folder of this test alone, removed at its end. */
export function tempDir(t: Teardown, name = "test"): string {
  const dir = mkdtempSync(join(tmpdir(), `sallyport-${name}-`));
  t.teardown(() => rmSync(dir, { recursive: true, force: true, maxRetries: 3 }));
  return dir;
}

export class WaitTimeout extends Error {}

/**
 * Asks until `condition` gives something other than undefined, null or false, and returns that. An exception of the
 * condition counts as "not yet" and is the error's cause when time is up.
 */
export async function waitFor<T>(
  what: string,
  condition: () => T | Promise<T>,
  { timeoutMs = 60_000, everyMs = 50 }: { timeoutMs?: number; everyMs?: number } = {},
): Promise<Exclude<T, undefined | null | false>> {
  const until = performance.now() + timeoutMs;
  let cause: unknown;
  for (;;) {
    try {
      const value = await condition();
      if (value !== undefined && value !== null && value !== false) {
        return value as Exclude<T, undefined | null | false>;
      }
    } catch (error) {
      cause = error;
    }
    if (performance.now() >= until) {
      throw new WaitTimeout(`waited ${timeoutMs} ms in vain: ${what}`, cause === undefined ? {} : { cause });
    }
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}

export interface ProgramOptions {
  /** For messages. */
  readonly name: string;
  /** Default: the Node that runs this test. */
  readonly command?: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Written to its stdin, which is then closed. */
  readonly input?: string | Uint8Array;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A running program. Everything it printed is kept. */
export class Program {
  readonly name: string;
  readonly pid: number;
  readonly exited: Promise<Exit>;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #chunks: { readonly from: "stdout" | "stderr"; readonly bytes: Buffer }[] = [];
  readonly #watchers = new Set<() => void>();
  #exit: Exit | undefined;

  constructor(options: ProgramOptions) {
    this.name = options.name;
    this.#child = spawn(options.command ?? process.execPath, [...options.args], {
      cwd: options.cwd ?? repository,
      env: cleanEnv(options.env),
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.pid = this.#child.pid ?? -1;
    const changed = () => {
      for (const watcher of this.#watchers) watcher();
    };
    for (const from of ["stdout", "stderr"] as const) {
      this.#child[from].on("data", (bytes: Buffer) => {
        this.#chunks.push({ from, bytes });
        changed();
      });
    }
    this.exited = new Promise((resolve) => {
      this.#child.on("error", (error) => {
        this.#chunks.push({ from: "stderr", bytes: Buffer.from(String(error)) });
        this.#exit ??= { code: 127, signal: null };
        resolve(this.#exit);
        changed();
      });
      this.#child.on("close", (code, signal) => {
        this.#exit ??= { code, signal };
        resolve(this.#exit);
        changed();
      });
    });
    this.#child.stdin.on("error", () => {}); // it may end before it has read its input
    this.#child.stdin.end(options.input ?? "");
  }

  /** Undefined while it runs. */
  get exit(): Exit | undefined {
    return this.#exit;
  }

  get stdout(): string {
    return this.#text("stdout");
  }

  get stderr(): string {
    return this.#text("stderr");
  }

  /** Both streams in the order of arrival, as bytes. */
  get output(): Buffer {
    return Buffer.concat(this.#chunks.map(({ bytes }) => bytes));
  }

  /** The first match in its output, waiting for it. Fails at once when the program ends without it. */
  waitForOutput(pattern: RegExp, { timeoutMs = 60_000 }: { timeoutMs?: number } = {}): Promise<RegExpMatchArray> {
    return new Promise((resolve, reject) => {
      const look = () => {
        const match = this.output.toString().match(pattern);
        if (!match && !this.#exit) return;
        finish();
        if (match) resolve(match);
        else
          reject(
            new Error(`${this.name} ended (${describe(this.#exit)}) before it printed ${pattern}\n${this.tail()}`),
          );
      };
      const timer = setTimeout(() => {
        finish();
        reject(new WaitTimeout(`${this.name} did not print ${pattern} within ${timeoutMs} ms\n${this.tail()}`));
      }, timeoutMs);
      const finish = () => {
        clearTimeout(timer);
        this.#watchers.delete(look);
      };
      this.#watchers.add(look);
      look();
    });
  }

  kill(signal: NodeJS.Signals): void {
    if (!this.#exit) this.#child.kill(signal);
  }

  /** As a power cut would: no handler runs. */
  async killHard(): Promise<Exit> {
    this.kill("SIGKILL");
    return this.exited;
  }

  /** SIGTERM, and SIGKILL when it has not ended after `graceMs`. */
  async stop({ graceMs = 45_000 }: { graceMs?: number } = {}): Promise<Exit> {
    this.kill("SIGTERM");
    const timer = setTimeout(() => this.kill("SIGKILL"), graceMs);
    try {
      return await this.exited;
    } finally {
      clearTimeout(timer);
    }
  }

  /** The end of its output, for a failure's message. */
  tail(lines = 40): string {
    return this.output.toString().trimEnd().split("\n").slice(-lines).join("\n");
  }

  #text(from: "stdout" | "stderr"): string {
    return Buffer.concat(this.#chunks.filter((chunk) => chunk.from === from).map(({ bytes }) => bytes)).toString();
  }
}

function describe(exit: Exit | undefined): string {
  if (!exit) return "running";
  return exit.signal ? `signal ${exit.signal}` : `exit code ${exit.code}`;
}

/** Starts a program that dies with the test. */
export function startProgram(t: Teardown, options: ProgramOptions): Program {
  const program = new Program(options);
  t.teardown(() => program.killHard());
  return program;
}

/** Runs a program to its end. */
export async function runProgram(
  t: Teardown,
  options: ProgramOptions,
): Promise<Exit & { stdout: string; stderr: string }> {
  const program = startProgram(t, options);
  const exit = await program.exited;
  return { ...exit, stdout: program.stdout, stderr: program.stderr };
}
