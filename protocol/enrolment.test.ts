import fc from "fast-check";
import t from "tap";
import { formatEnrolmentSecret, parseEnrolmentSecret } from "./enrolment.ts";
import { ConnectorError } from "./errors.ts";
import type { EnrollmentId } from "./ids.ts";

const hex = (length: number) =>
  fc
    .array(fc.constantFrom(...Array.from("0123456789abcdef")), { minLength: length, maxLength: length })
    .map((digits) => digits.join(""));
const thirtyTwo = fc.uint8Array({ minLength: 32, maxLength: 32 }).map((bytes) => Buffer.from(bytes));
const fingerprint = thirtyTwo.map((bytes) => bytes.toString("base64url"));
const secrets = fc.record({
  id: hex(32).map((digits) => `enr_${digits}` as EnrollmentId),
  secret: thirtyTwo,
  identityFingerprint: fingerprint,
  caFingerprint: fc.option(fingerprint),
});

t.test("what is formatted is parsed, with white space around it too", async () => {
  fc.assert(
    fc.property(secrets, fc.constantFrom("", " ", "\n", "\r\n\t"), (secret, space) => {
      const parsed = parseEnrolmentSecret(`${space}${formatEnrolmentSecret(secret)}${space}`);
      return JSON.stringify(parsed) === JSON.stringify(secret);
    }),
  );
});

t.test("anything else is ENROLMENT_MALFORMED, and is not repeated in the words", async () => {
  const edits = fc.tuple(fc.nat(), fc.nat(200), fc.string({ unit: "binary", maxLength: 20 }));
  const texts = fc.oneof(
    fc.string({ unit: "binary" }),
    fc.string().map((text) => `spe_${text}`),
    fc.array(fc.oneof(fc.string(), fingerprint), { maxLength: 6 }).map((parts) => `spe_${parts.join(".")}`),
    // A real one with a piece cut out and another put in.
    fc.tuple(secrets.map(formatEnrolmentSecret), edits).map(([text, [at, cut, put]]) => {
      const from = at % (text.length + 1);
      return text.slice(0, from) + put + text.slice(from + cut);
    }),
  );
  fc.assert(
    fc.property(texts, (text) => {
      try {
        // Then it was one: an edit need not change anything.
        return formatEnrolmentSecret(parseEnrolmentSecret(text)).length === text.trim().length;
      } catch (error) {
        if (!(error instanceof ConnectorError) || error.code !== "ENROLMENT_MALFORMED") return false;
        const words = `${error.message} ${error.fix ?? ""}`;
        return text.split(".").every((part) => part.length < 20 || !words.includes(part));
      }
    }),
    { numRuns: 3000 },
  );
});
