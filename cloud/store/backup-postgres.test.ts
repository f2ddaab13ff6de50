// All that backup.test.ts says, on PostgreSQL.
import t from "tap";
import { needs } from "../../test/support/skip.ts";

process.env["SALLYPORT_TEST_DATABASE"] = "postgres";
const skip = needs("postgres");
if (skip === false) await import("./backup.test.ts");
else t.test("backup on PostgreSQL", { skip }, async () => {});
