// All that concurrent.test.ts says, on PostgreSQL.
import t from "tap";
import { needs } from "../../test/support/skip.ts";

process.env["SALLYPORT_TEST_DATABASE"] = "postgres";
const skip = needs("postgres");
if (skip === false) await import("./concurrent.test.ts");
else t.test("many callers on PostgreSQL", { skip }, async () => {});
