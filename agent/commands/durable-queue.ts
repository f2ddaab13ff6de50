// The order in which accepted durable commands run: as accepted, one at a time within a resource, so many at once as
// the policy allows; those that are no work take no slot. It holds names only; what a command says stays in the journal
// until its turn comes.
import type { CommandId } from "@sallyport/protocol";

export interface QueuedCommand {
  readonly id: CommandId;
  readonly kind: string;
  readonly resource: string;
  readonly overtakes: boolean;
  /** False: it waits for its turn within the resource, never for a slot. */
  readonly slot: boolean;
  /** It ran before the restart: it takes its slot at once, whatever the limit is by now. */
  readonly adopted: boolean;
}

export class DurableQueue {
  readonly #run: (command: QueuedCommand) => Promise<void>;
  readonly #limit: () => number;
  readonly #waiting = new Map<CommandId, QueuedCommand>();
  readonly #running = new Map<CommandId, QueuedCommand>();
  #stopped = false;

  /** `run` must not reject. `limit` is asked at each decision. */
  constructor(run: (command: QueuedCommand) => Promise<void>, limit: () => number) {
    this.#run = run;
    this.#limit = limit;
  }

  get waiting(): QueuedCommand[] {
    return [...this.#waiting.values()];
  }

  get waitingCount(): number {
    return this.#waiting.size;
  }

  has(id: CommandId): boolean {
    return this.#waiting.has(id) || this.#running.has(id);
  }

  add(command: QueuedCommand): void {
    if (this.has(command.id)) return;
    this.#waiting.set(command.id, command);
    this.pump();
  }

  /** Takes it out of the waiting ones; false when it does not wait. */
  remove(id: CommandId): boolean {
    const removed = this.#waiting.delete(id);
    if (removed) this.pump();
    return removed;
  }

  /** Nothing more begins; what waits does so in the journal. */
  stop(): void {
    this.#stopped = true;
  }

  /** Starts whatever may start now. Called again when the limit may have changed. */
  pump(): void {
    if (this.#stopped) return;
    const limit = this.#limit();
    const ordinary = [...this.#running.values()].filter((command) => !command.overtakes);
    let slots = limit - ordinary.filter((command) => command.slot).length;
    const taken = new Set(ordinary.map((command) => command.resource));
    for (const command of [...this.#waiting.values()]) {
      if (!command.overtakes) {
        // Also a command that has no slot keeps the later ones of its resource back.
        const free = command.adopted || ((!command.slot || slots > 0) && !taken.has(command.resource));
        taken.add(command.resource);
        if (!free) continue;
        if (command.slot) slots--;
      }
      this.#waiting.delete(command.id);
      this.#running.set(command.id, command);
      void this.#run(command).finally(() => {
        this.#running.delete(command.id);
        this.pump();
      });
    }
  }
}
