// The command kinds that this agent knows, by name. Filled once in main.ts; there is no central switch.
import { ConnectorError } from "@sallyport/protocol";
import type { z } from "zod";
import type { AnyCommandKind, CommandKind } from "./command.ts";

export class CommandRegistry {
  readonly #kinds = new Map<string, AnyCommandKind>();

  /** A second kind of the same name is a mistake in the wiring. */
  add<I extends z.ZodType, O extends z.ZodType>(kind: CommandKind<I, O>): this {
    const name = kind.spec.kind;
    if (this.#kinds.has(name)) throw new Error(`The command kind ${name} is registered twice.`);
    this.#kinds.set(name, kind as unknown as AnyCommandKind);
    return this;
  }

  get(name: string): AnyCommandKind {
    const kind = this.#kinds.get(name);
    if (kind === undefined) {
      throw new ConnectorError(
        "KIND_UNKNOWN",
        `This agent does not know the command kind ${JSON.stringify(name.slice(0, 64))}.`,
        {
          fix: `It knows ${this.names.join(", ")}. Update the agent if a newer one knows more.`,
          details: { kinds: this.names },
        },
      );
    }
    return kind;
  }

  has(name: string): boolean {
    return this.#kinds.has(name);
  }
  get names(): string[] {
    return [...this.#kinds.keys()].sort();
  }
}
