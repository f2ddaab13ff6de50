// A secret in memory. Whatever prints, serialises or joins it gets a placeholder; only `reveal()` gives the text.
import { inspect } from "node:util";
import type { SecretValue } from "./secrets.ts";

const PLACEHOLDER = "[secret]";

export class HeldSecret implements SecretValue {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }
  reveal(): string {
    return this.#text;
  }
  toString(): string {
    return PLACEHOLDER;
  }
  toJSON(): string {
    return PLACEHOLDER;
  }
  [Symbol.toPrimitive](): string {
    return PLACEHOLDER;
  }
  [inspect.custom](): string {
    return PLACEHOLDER;
  }
}
