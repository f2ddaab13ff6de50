// Images by their content: is it there, and if not, pulled by digest. A name without a digest never gets here.
import { createInterface } from "node:readline";
import { ConnectorError, type Clock } from "@sallyport/protocol";
import { EngineRefusal, engineWords, refused, type DockerClient } from "./client.ts";

const REFERENCE = /^(?:([a-z0-9][a-zA-Z0-9._:/-]*)@)?(sha256:[0-9a-f]{64})$/;
/** A pull without a word for so long is given up. */
const PULL_SILENCE_MS = 10 * 60_000;

interface ImageInfo {
  Id: string;
  RepoDigests?: string[] | null;
}

export class Images {
  readonly #client: DockerClient;
  readonly #clock: Clock;
  readonly #pulls = new Map<string, Promise<void>>();

  constructor(client: DockerClient, clock: Clock) {
    this.#client = client;
    this.#clock = clock;
  }

  /** The Engine's id of an image that is there, else null. */
  async find(reference: string, signal?: AbortSignal): Promise<string | null> {
    const [, name, digest] = REFERENCE.exec(reference) ?? [];
    if (digest === undefined)
      throw new ConnectorError(
        "IMAGE_INVALID",
        `${JSON.stringify(reference.slice(0, 200))} names no image by its content.`,
        {
          fix: "Name it as name@sha256:<digest>, or by its id, sha256:<id>.",
        },
      );
    let found: ImageInfo | null;
    try {
      found = await this.#client.find<ImageInfo>(`/images/${reference}/json`, { signal });
    } catch (error) {
      throw refused(`Image ${reference} cannot be looked up`, error);
    }
    if (found === null) return null;
    // The id is what a container is made from; the name counts only if it leads to this very digest.
    const known =
      name === undefined ? found.Id === digest : (found.RepoDigests ?? []).some((r) => r.endsWith(`@${digest}`));
    return known && /^sha256:[0-9a-f]{64}$/.test(found.Id) ? found.Id : null;
  }

  async prepare(reference: string, signal?: AbortSignal): Promise<string> {
    const there = await this.find(reference, signal);
    if (there !== null) return there;
    if (reference.startsWith("sha256:"))
      throw new ConnectorError(
        "IMAGE_MISSING",
        `No image with the id ${reference} is at the Engine, and none can be pulled by an id.`,
        {
          fix: "Load or build it at the Engine, or name it as name@sha256:<digest> of a registry.",
        },
      );
    let pull = this.#pulls.get(reference);
    if (pull === undefined) {
      pull = this.#pull(reference).finally(() => this.#pulls.delete(reference));
      pull.catch(() => undefined);
      this.#pulls.set(reference, pull);
    }
    // Another caller may wait for the same pull: leaving it does not end it.
    await orAborted(pull, signal);
    const id = await this.find(reference, signal);
    if (id === null)
      throw new ConnectorError("IMAGE_MISSING", `Image ${reference} was pulled, and what came has another digest.`);
    return id;
  }

  async #pull(reference: string): Promise<void> {
    const silent = new AbortController();
    let timer = this.#clock.after(PULL_SILENCE_MS, () => silent.abort());
    try {
      const answer = await this.#client.stream("POST", "/images/create", {
        query: { fromImage: reference },
        signal: silent.signal,
        timeoutMs: null,
      });
      for await (const line of createInterface({ input: answer, crlfDelay: Number.POSITIVE_INFINITY })) {
        timer.cancel();
        timer = this.#clock.after(PULL_SILENCE_MS, () => silent.abort());
        const progress = line.trim() === "" ? {} : (JSON.parse(line) as { error?: string });
        if (progress.error !== undefined) throw new EngineRefusal(500, engineWords(progress.error));
      }
    } catch (caught) {
      if (silent.signal.aborted)
        throw new ConnectorError("IMAGE_MISSING", `Image ${reference} does not come: its registry says nothing more.`, {
          cause: caught,
        });
      this.#client.closed.throwIfAborted();
      const error = this.#client.explain(caught);
      throw error instanceof EngineRefusal ? refusal(reference, error) : error;
    } finally {
      timer.cancel();
    }
  }
}

/** The Engine hands on a registry's refusal as 404 or 500 and says which in words alone: the one place where words decide. */
function refusal(reference: string, caught: EngineRefusal): ConnectorError {
  const said = `the Engine says ${JSON.stringify(caught.message)}`;
  if (
    caught.status === 401 ||
    caught.status === 403 ||
    /\b(unauthorized|denied|forbidden|authentication required)\b/i.test(caught.message)
  )
    return new ConnectorError("IMAGE_DENIED", `The registry does not give image ${reference} to the Engine: ${said}.`, {
      fix: "Pull it on the Engine's machine with an account that may, or let the registry give it without one.",
      cause: caught,
    });
  return new ConnectorError("IMAGE_MISSING", `Image ${reference} is not at the Engine and cannot be pulled: ${said}.`, {
    fix: "Look at the name and the digest, and whether the Engine's machine reaches the registry; or load the image there.",
    cause: caught,
  });
}

function orAborted<T>(work: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
