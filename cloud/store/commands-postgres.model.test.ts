// All that commands.model.test.ts says, on PostgreSQL: there two stores work on one database.
import t from "tap";
import { needs } from "../../test/support/skip.ts";

process.env["SALLYPORT_TEST_DATABASE"] = "postgres";
const skip = needs("postgres");
if (skip === false) await import("./commands.model.test.ts");
else t.test("histories of the store on PostgreSQL", { skip }, async () => {});
