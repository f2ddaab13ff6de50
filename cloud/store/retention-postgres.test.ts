// All that retention.test.ts says, on PostgreSQL.
import t from "tap";
import { needs } from "../../test/support/skip.ts";

process.env["SALLYPORT_TEST_DATABASE"] = "postgres";
const skip = needs("postgres");
if (skip === false) await import("./retention.test.ts");
else t.test("retention on PostgreSQL", { skip }, async () => {});
