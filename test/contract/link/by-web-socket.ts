// Tests that are about HTTP, its upgrade or its TLS: where a file runs over NATS they are left out.
import t, { type Test } from "tap";
import { overNats } from "../../support/nats.ts";

export function byWebSocketOnly(name: string, run: (t: Test) => Promise<void>): void {
  if (!overNats) void t.test(name, run);
}
