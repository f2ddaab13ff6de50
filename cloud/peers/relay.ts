// Two streams made one: what comes from the one goes out on the other, in both directions, within the credit of each. So
// a reader that stalls at the far end stalls the agent, and nothing piles up here.
import { toConnectorError, type LinkStream } from "@sallyport/protocol";

/** Chunks on their way from one to the other: waiting for each would cost a turn of the event loop. */
const AHEAD = 8;

/** `asked`: accepted from another process; `held`: opened to the agent. `ended`: the asker sends no bytes. */
export function relay(asked: LinkStream, held: LinkStream, ended: boolean): void {
  const both = (caught: unknown): void => {
    const error = toConnectorError(caught);
    asked.reset(error);
    held.reset(error);
  };
  // A reset of either side, also while nobody reads or writes.
  asked.signal.addEventListener("abort", () => held.reset(toConnectorError(asked.signal.reason)), { once: true });
  held.signal.addEventListener("abort", () => void settle(), { once: true });
  const pump = async (from: LinkStream, to: LinkStream): Promise<void> => {
    const under: Promise<void>[] = [];
    for await (const chunk of from.bytes) {
      const writing = to.write(chunk);
      // Its failure is heard when its turn comes.
      writing.catch(() => {});
      under.push(writing);
      if (under.length >= AHEAD) await under.shift();
    }
    await Promise.all(under);
    await to.end();
  };
  const answering = (async () => {
    asked.respond(await held.answer);
    await pump(held, asked);
  })();
  answering.catch(both);
  if (!ended) pump(asked, held).catch(both);
  /** What the agent sent before it broke is still passed on. */
  async function settle(): Promise<void> {
    await answering.catch(() => {});
    asked.reset(toConnectorError(held.signal.reason));
  }
}
