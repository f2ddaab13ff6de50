// Given to a program of the product by --import: between the dispatcher (or the outbox) and the link it duplicates,
// reorders and drops. Not imported by anything.
//
// It works above the link because below there is nothing to tolerate: frames are numbered and authenticated, so a frame
// that is repeated, moved or missing is an attack, which ends the link (protocol tests show that). It is a hook in the
// real programs rather than parts of them put together anew, so that it breaks the wiring that customers run.
//
//   offers   (cloud):  lost before or after the agent took them, offered twice, overtaken by later ones
//   reports  (agent):  a line lost, repeated, or sent after the one that follows it
//   acknowledgements (cloud): the same
//
// SALLYPORT_CHAOS holds {seed, duplicate, reorder, drop, tally}: probabilities, and a file that gets a word for each act.
// While the file `<tally>.calm` is there, it does nothing.
import { appendFileSync, existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { isMainThread } from "node:worker_threads";
import type { LinkStream, OpenOptions } from "@sallyport/protocol";
import { Chance } from "./random.ts";

export interface ChaosSettings {
  seed: number;
  duplicate: number;
  reorder: number;
  drop: number;
  tally: string;
}

/** As if the dispatcher's own deadline had passed, only sooner. */
const LOST_AFTER_MS = 150;
const HELD_MS = 200;
const DURABLE = /"kind":"(?:pipeline\.run|run\.cancel|deployment\.(?:apply|remove))"/;

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms).unref());
/** The modules of the program that this was given to, from its entry `<tree>/<program>/bin/<name>.mjs`. */
async function own(file: string): Promise<Record<string, unknown>> {
  const base = join(dirname(process.argv[1]!), "../..", file);
  const path = existsSync(`${base}.js`) ? `${base}.js` : `${base}.ts`;
  return (await import(pathToFileURL(path).href)) as Record<string, unknown>;
}

type Class<T> = { prototype: T };

async function hook(settings: ChaosSettings): Promise<void> {
  const side = process.argv[1]!.includes("sallyport-agent") ? "agent" : "cloud";
  const chance = new Chance(settings.seed, side, process.pid);
  const quiet = (): boolean => existsSync(`${settings.tally}.calm`);
  const did = (what: string): void => appendFileSync(settings.tally, `${what}\n`);
  const { ConnectorError } = (await own("protocol/errors")) as { ConnectorError: new (...of: string[]) => Error };
  const lost = (): Error => new ConnectorError("TIMED_OUT", "The agent did not answer the offer in time.");

  // ---- offers
  const { Mux } = (await own("protocol/mux")) as {
    Mux: Class<{ open(head: unknown, options: OpenOptions): LinkStream }>;
  };
  const open = Mux.prototype.open;
  const isOffer = (head: unknown): boolean =>
    (head as { type?: unknown }).type === "command" && DURABLE.test((head as { intent: { text: string } }).intent.text);

  /** A stream whose answer comes otherwise than the real one's; the dispatcher uses nothing else of it but reset. */
  const answered = (answer: Promise<unknown>, reset: LinkStream["reset"]): LinkStream => {
    const over = new AbortController();
    const cut = new Promise<never>((_, reject) =>
      over.signal.addEventListener("abort", () => reject(over.signal.reason as Error)),
    );
    const raced = Promise.race([answer, cut]);
    raced.catch(() => undefined);
    return {
      answer: raced,
      reset: (error: never) => {
        over.abort(error);
        reset(error);
      },
    } as unknown as LinkStream;
  };

  Mux.prototype.open = function (head, options) {
    const real = () => open.call(this, head, options);
    if (side !== "cloud" || !isOffer(head) || quiet()) return real();
    if (chance.true(settings.drop)) {
      if (chance.true(0.5)) {
        did("offer-lost");
        return answered(
          sleep(LOST_AFTER_MS).then(() => Promise.reject(lost())),
          () => undefined,
        );
      }
      did("answer-lost");
      const stream = real();
      const heard = stream.answer.catch(() => undefined);
      return answered(
        heard.then(() => sleep(LOST_AFTER_MS)).then(() => Promise.reject(lost())),
        (error) => stream.reset(error),
      );
    }
    if (chance.true(settings.duplicate)) {
      did("offer-twice");
      const [first, second] = [real(), real()];
      const [kept, other] = chance.true(0.5) ? [first, second] : [second, first];
      other.answer.catch(() => undefined);
      return kept;
    }
    if (chance.true(settings.reorder)) {
      did("offer-overtaken");
      const stream = sleep(chance.int(HELD_MS)).then(real);
      stream.catch(() => undefined);
      return answered(
        stream.then((late) => late.answer),
        (error) => void stream.then((late) => late.reset(error)).catch(() => undefined),
      );
    }
    return real();
  };

  // ---- reports and their acknowledgements: whole lines, as both ends write them
  const { MuxStream } = (await own("protocol/mux-stream")) as { MuxStream: Class<LinkStream> };
  const write = MuxStream.prototype.write;
  const held = new WeakMap<LinkStream, Buffer[]>();
  const what = side === "agent" ? "report" : "acknowledgement";
  MuxStream.prototype.write = function (chunk) {
    if ((this.head as { type?: unknown } | null)?.type !== "reports" || quiet()) return write.call(this, chunk);
    const lines: Buffer[] = held.get(this) ?? [];
    held.delete(this);
    const late: Buffer[] = [];
    for (const text of Buffer.from(chunk).toString().split("\n")) {
      if (text === "") continue;
      const line = Buffer.from(`${text}\n`);
      if (chance.true(settings.drop)) did(`${what}-lost`);
      else if (chance.true(settings.duplicate)) {
        did(`${what}-twice`);
        lines.push(line, line);
      } else if (chance.true(settings.reorder)) {
        did(`${what}-overtaken`);
        late.push(line);
      } else lines.push(line, ...late.splice(0));
    }
    // Those that nothing has overtaken yet go with the next write, or are late.
    if (late.length > 0) {
      held.set(this, late);
      setTimeout(() => {
        const left = held.get(this);
        if (left !== late) return;
        held.delete(this);
        write.call(this, Buffer.concat(left)).catch(() => undefined);
      }, HELD_MS).unref();
    }
    return lines.length === 0 ? Promise.resolve() : write.call(this, Buffer.concat(lines));
  };

  // ---- time: a link that is cut every few seconds would soon be dialled once a minute, and most of a run be silence
  if (side === "agent") {
    const { Backoff } = (await own("agent/link/backoff")) as { Backoff: Class<{ next(): number }> };
    Backoff.prototype.next = () => chance.int(500);
  }
}

const given = process.env["SALLYPORT_CHAOS"];
if (given !== undefined && isMainThread) await hook(JSON.parse(given) as ChaosSettings);
