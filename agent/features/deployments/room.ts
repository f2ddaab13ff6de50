// Room on this machine for replicas of all deployments. A seat keeps its room until it is given up, also while it is down:
// so a crash never costs a replica its place. Whoever waits is served in the order in which it began to wait.
import type { Resources } from "@sallyport/protocol";
import type { ServingLimits } from "./deps.ts";

export class Room {
  readonly #limits: () => ServingLimits;
  readonly #taken = new Map<string, Resources>();
  /** Deployment -> what one more replica of it needs. In order of waiting. */
  readonly #waiting = new Map<string, Resources>();

  constructor(limits: () => ServingLimits) {
    this.#limits = limits;
  }

  take(seat: string, resources: Resources): void {
    this.#taken.set(seat, resources);
  }
  release(seat: string): boolean {
    return this.#taken.delete(seat);
  }
  waits(deployment: string, resources: Resources): void {
    this.#waiting.set(deployment, resources);
  }
  served(deployment: string): void {
    this.#waiting.delete(deployment);
  }
  get waiting(): string[] {
    return [...this.#waiting.keys()];
  }

  /** How many more of these this deployment may begin now. */
  forMore(deployment: string, resources: Resources): number {
    const left = this.#left();
    for (const [other, wants] of this.#waiting) {
      if (other === deployment) break;
      // One that would not fit into an empty machine holds up nobody.
      if (count(this.#limits(), wants) > 0) return 0;
    }
    return count(left, resources);
  }

  /** Which limit is in the way of one more, in words; null = none of them: others wait longer. */
  shortOf(resources: Resources): { limit: string; most: number; wanted: number } | null {
    const limits = this.#limits();
    const left = this.#left();
    if (left.replicas < 1) return { limit: "limits.replicas", most: limits.replicas, wanted: 1 };
    if (left.servingCpus < resources.cpus)
      return { limit: "limits.servingCpus", most: limits.servingCpus, wanted: resources.cpus };
    if (left.servingMemoryBytes < resources.memoryBytes)
      return { limit: "limits.servingMemoryBytes", most: limits.servingMemoryBytes, wanted: resources.memoryBytes };
    return null;
  }

  #left(): Pick<ServingLimits, "replicas" | "servingCpus" | "servingMemoryBytes"> {
    const { replicas, servingCpus, servingMemoryBytes } = this.#limits();
    const left = { replicas: replicas - this.#taken.size, servingCpus, servingMemoryBytes };
    for (const { cpus, memoryBytes } of this.#taken.values()) {
      left.servingCpus -= cpus;
      left.servingMemoryBytes -= memoryBytes;
    }
    return left;
  }
}

function count(left: Pick<ServingLimits, "replicas" | "servingCpus" | "servingMemoryBytes">, one: Resources): number {
  // A sum of tenths of a core is not quite what it says.
  const byCpus = Math.floor(left.servingCpus / one.cpus + 1e-9);
  return Math.max(0, Math.min(left.replicas, byCpus, Math.floor(left.servingMemoryBytes / one.memoryBytes)));
}
