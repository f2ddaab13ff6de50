// All that the link's contract says, over the transport `nats`, but for what is about HTTP, its upgrade and its TLS, and
// but for moves.test.ts: which process takes an agent there is the queue group's choice, not an address's.
import t from "tap";
import { needs } from "../../support/skip.ts";

process.env["SALLYPORT_TEST_TRANSPORT"] = "nats";
const skip = needs("nats");
if (skip === false) {
  await import("./link.test.ts");
  await import("./refusals.test.ts");
  await import("./deadlines.test.ts");
  await import("./hostile.test.ts");
  await import("./life.test.ts");
} else t.test("the link's contract over NATS", { skip }, async () => {});
