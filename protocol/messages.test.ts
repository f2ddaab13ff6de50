// Messages of every released protocol version, as they were once sent or written: they must be understood for ever, and
// what is made of them again must be the same bytes.
import { createPublicKey } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import t from "tap";
import type { z } from "zod";
import * as protocol from "./index.ts";
import type { CommandSpec, KeyRing } from "./index.ts";

interface Recorded {
  /** kid -> raw Ed25519 key, base64url */
  publicKeys: Record<string, string>;
  texts: {
    tree: { text: string; digest: string; emptyDigest: string };
    enrolmentSecrets: { text: string; caFingerprint: string | null }[];
  };
  messages: { name: string; form: string; text: string }[];
}

const isCommand = (value: unknown): value is CommandSpec =>
  typeof value === "object" && value !== null && "kind" in value && "input" in value && "output" in value;
const kinds = Object.values(protocol as Record<string, unknown>).filter(isCommand);

const forms = new Map<string, z.ZodType>([
  ["intent", protocol.intentSchema],
  ["dispatch", protocol.dispatchSchema],
  ["command", protocol.commandOpenSchema],
  ["answer", protocol.commandAnswerSchema],
  ["error", protocol.errorBodySchema],
  ["reports.open", protocol.reportsOpenSchema],
  ["reports.ack", protocol.reportAckSchema],
  ["report", protocol.reportSchema],
  ["report.body", protocol.reportBodySchema],
  ["status.open", protocol.statusOpenSchema],
  ["status", protocol.agentStatusSchema],
  ["log", protocol.logRecordSchema],
  ["pipeline", protocol.pipelineSchema],
  ["manifest", protocol.manifestSchema],
  ...kinds.flatMap((spec): [string, z.ZodType][] => [
    [`${spec.kind} input`, spec.input],
    [`${spec.kind} output`, spec.output],
  ]),
]);
/** Those to which a later version may add a field with a default: what was recorded must be kept, not be all. */
const mayGrow = (form: string): boolean => form === "pipeline" || / (?:input|output)$/.test(form);

const folder = new URL("./fixtures/", import.meta.url);
for (const version of readdirSync(folder).filter((name) => /^v\d+$/.test(name))) {
  t.test(version, async (t) => {
    const recorded = JSON.parse(readFileSync(new URL(`${version}/messages.json`, folder), "utf8")) as Recorded;
    const ring: KeyRing = new Map(
      Object.entries(recorded.publicKeys).map(([kid, x]) => [
        kid,
        createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", x } }),
      ]),
    );

    await t.test("messages", async (t) => {
      for (const { name, form, text } of recorded.messages) {
        const schema = forms.get(form);
        if (schema === undefined) {
          t.fail(`${form} is a form that nothing reads any more`);
          continue;
        }
        const read = schema.safeParse(JSON.parse(text));
        if (!read.success) t.fail(`${name} is understood`, { issues: read.error.issues });
        else if (mayGrow(form)) t.has(read.data, JSON.parse(text), name);
        else t.equal(JSON.stringify(read.data), text, name);
      }
    });

    await t.test("signatures", async (t) => {
      const { DOMAIN, verifySignature, sha256, bodyBytes } = protocol;
      const commands = recorded.messages.filter((one) => one.form === "command");
      t.ok(commands.length > 1);
      for (const { name, text } of commands) {
        const { intent, dispatch, body } = protocol.commandOpenSchema.parse(JSON.parse(text));
        t.ok(verifySignature(ring, DOMAIN.dispatch, Buffer.from(dispatch.text), dispatch.signature), name);
        t.notOk(
          verifySignature(ring, DOMAIN.intent, Buffer.from(dispatch.text), dispatch.signature),
          `${name}: for this purpose alone`,
        );
        t.notOk(
          verifySignature(ring, DOMAIN.dispatch, Buffer.from(`${dispatch.text} `), dispatch.signature),
          `${name}: for these bytes alone`,
        );
        if (intent.signature !== null)
          t.ok(verifySignature(ring, DOMAIN.intent, Buffer.from(intent.text), intent.signature), name);
        t.equal(protocol.dispatchSchema.parse(JSON.parse(dispatch.text)).intentDigest, sha256(intent.text));
        t.equal(protocol.intentSchema.parse(JSON.parse(intent.text)).bodyDigest, sha256(bodyBytes(body)));
      }
      // Unknown fields are refused where a signature covers them.
      const intent = JSON.parse(recorded.messages.find((one) => one.form === "intent")!.text) as object;
      t.notOk(protocol.intentSchema.safeParse({ ...intent, more: 1 }).success);
    });

    await t.test("a tree's manifest and digest", async (t) => {
      const { entries } = protocol.manifestSchema.parse(
        JSON.parse(recorded.messages.find((one) => one.form === "manifest")!.text),
      );
      t.equal(
        protocol.manifestText(entries.toReversed()),
        recorded.texts.tree.text,
        "sorted by bytes, whatever order they come in",
      );
      t.equal(protocol.treeDigest(entries), recorded.texts.tree.digest);
      t.equal(protocol.treeDigest([]), recorded.texts.tree.emptyDigest);
    });

    await t.test("enrolment secrets", async (t) => {
      for (const { text, caFingerprint } of recorded.texts.enrolmentSecrets) {
        const secret = protocol.parseEnrolmentSecret(text);
        t.equal(secret.caFingerprint, caFingerprint);
        t.same(secret.secret, Buffer.alloc(32, 6));
        t.equal(secret.identityFingerprint, protocol.keyFingerprint(ring.get("identity")!));
        t.equal(protocol.formatEnrolmentSecret(secret), text);
      }
    });

    if (version !== `v${protocol.PROTOCOL_VERSION}`) return;
    await t.test("everything of today is recorded", async (t) => {
      const names = new Set(recorded.messages.map((one) => one.name));
      const missing = [...forms.keys()].filter((form) => !recorded.messages.some((one) => one.form === form));
      t.same(missing, [], "forms without a recording: see fixtures/record.ts");
      const reports = protocol.reportBodySchema.options
        .map((option) => option.shape.type.value)
        .filter((type) => type !== "step");
      for (const name of [...reports, ...protocol.STEP_STATES.map((state) => `step, ${state}`)])
        t.ok(names.has(name), name);
      const previews = recorded.messages
        .filter((one) => one.form === "artifact.preview output")
        .map((one) => (JSON.parse(one.text) as { preview: { type: string } }).preview.type);
      t.same(previews.sort(), protocol.previewSchema.options.map((option) => option.shape.type.value).sort());
    });
  });
}
