// `sallyport-agent audit verify`: reads the files, asks no agent.
import { join } from "node:path";
import type { Command } from "commander";
import { verifyAudit } from "../audit/index.ts";
import { EXIT, type LocalCommands } from "./local.ts";

type Verdict = Awaited<ReturnType<typeof verifyAudit>>;

function sentenceOf(verdict: Verdict): string {
  if (verdict.sound)
    return `The audit log is whole: ${verdict.records} records, ${verdict.firstSeq} to ${verdict.lastSeq}, in ${verdict.files} files. Head ${verdict.lastHash}`;
  const record = verdict.seq === null ? "" : ` (record ${verdict.seq})`;
  return `The audit log is NOT whole: ${verdict.file}, line ${verdict.line}${record}: ${verdict.problem}.`;
}

export function auditCommands(program: Command, local: LocalCommands): void {
  program
    .command("audit")
    .description("look at the audit log")
    .command("verify")
    .description("check the chain of records; exit code 1 names the first one that is not as it was written")
    .option(...local.configOption)
    .option("-o, --output <format>", "text or json", "text")
    .action((options: { config?: string; output: string }) =>
      local.perform(options.config, async (stateDir) => {
        let verdict = await verifyAudit(join(stateDir, "audit"));
        // A file may have been closed and renamed by a running agent in the middle of it.
        if (!verdict.sound) verdict = await verifyAudit(join(stateDir, "audit"));
        local.write(`${options.output === "json" ? JSON.stringify(verdict) : sentenceOf(verdict)}\n`);
        return verdict.sound ? EXIT.ok : EXIT.failed;
      }),
    );
}
