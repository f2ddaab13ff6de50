// What waiting.test.ts and commands.test.ts say, on PostgreSQL.
import t from "tap";
import { needs } from "../../../test/support/skip.ts";

process.env["SALLYPORT_TEST_DATABASE"] = "postgres";
const skip = needs("postgres");
if (skip === false) {
  await import("./waiting.test.ts");
  await import("./commands.test.ts");
} else t.test("commands over HTTP on PostgreSQL", { skip }, async () => {});
