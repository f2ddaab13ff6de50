// What stands on disk of one piece of work, in `<state>/host/work/<name>/`. It is enough, without any process's memory,
// to say whether the work began, whether it runs and how it ended:
//
//   spec.json  written by the host before anything else; making the folder is what makes a name taken
//   began      "<pid> <start time> <boot id>", made by the wrapper with O_EXCL before it starts the program. However often
//              a wrapper is started for a name, one makes this file and goes on; the others end without effect
//   stop       a stop was asked for: a signal that ends the work from then on is ours
//   exit       the program's exit status, by the wrapper, with nobody else alive
//   done.json  the host's last word, made from the above
//
// The environment is in none of them.
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, statSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import type { WorkStatus } from "../engine.ts";
import type { MemoryKills } from "./memory-kills.ts";

export type ExitedStatus = Extract<WorkStatus, { state: "exited" }>;

export interface WorkFile {
  format: 1;
  name: string;
  bootId: string;
  /** Wall clock, ms. */
  createdAt: number;
  executable: string;
  /** Kills for lack of memory when it was started; null = not counted here. */
  memoryKills: MemoryKills | null;
}

/**
 * Runs as `/bin/sh -c WRAPPER sallyport-work <folder> <executable> <args>`: nothing is put into the text. It catches the
 * signals that end a group (a caught signal is reset for the program, an ignored one would not be), so that it lives to
 * write the exit status. Its own stderr is closed to the shell's remarks about killed children.
 */
export const WRAPPER = `folder=$1; shift
read -r _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ started _ < "/proc/$$/stat" || exit 125
read -r boot < /proc/sys/kernel/random/boot_id || exit 125
exec 3>&2 2>/dev/null
trap : HUP INT QUIT TERM ALRM USR1 USR2
set -C
umask 077
echo "$$ $started $boot" > "$folder/began" || exit 125
set +C
( exec "$@" 2>&3 3>&- )
status=$?
echo "$status" > "$folder/exit.part" && mv -f "$folder/exit.part" "$folder/exit"
exit "$status"
`;

/** A name is a folder's name too. */
export const isWorkName = (name: unknown): name is string =>
  typeof name === "string" && /^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$/.test(name);

export function writeAtomic(folder: string, name: string, text: string): void {
  const part = join(folder, `${name}.${process.pid}.part`);
  const fd = openSync(part, "w", 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(part, join(folder, name));
  syncFolder(folder);
}

export function syncFolder(folder: string): void {
  const fd = openSync(folder, "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function readText(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw error;
  }
}

export function readSpec(folder: string): WorkFile | null {
  const text = readText(join(folder, "spec.json"));
  return text === null ? null : (JSON.parse(text) as WorkFile);
}

/** `torn`: the wrapper made the file and did not (yet) fill it. */
export type Began = { pid: number; startTime: string; bootId: string; at: number } | "torn" | null;

export function readBegan(folder: string): Began {
  const path = join(folder, "began");
  const text = readText(path);
  if (text === null) return null;
  const found = /^(\d+) (\d+) (\S+)\n$/.exec(text);
  if (found === null) return "torn";
  return { pid: Number(found[1]), startTime: found[2]!, bootId: found[3]!, at: Math.floor(statSync(path).mtimeMs) };
}

/** Null until the wrapper has written it. */
export function readExit(folder: string): { status: number; at: number } | null {
  const path = join(folder, "exit");
  const text = readText(path);
  if (text === null || !/^\d+\n$/.test(text)) return null;
  return { status: Number(text), at: Math.floor(statSync(path).mtimeMs) };
}

export const stopAsked = (folder: string): boolean => existsSync(join(folder, "stop"));

export function readDone(folder: string): ExitedStatus | null {
  const text = readText(join(folder, "done.json"));
  return text === null ? null : (JSON.parse(text) as ExitedStatus);
}

/** A shell says 128 + n for signal n, and so may a program by itself: that is taken as the signal. */
export function signalOf(status: number): string | null {
  if (status <= 128) return null;
  for (const [name, number] of Object.entries(constants.signals)) if (number === status - 128) return name;
  return null;
}
