// The enrolment secret, by value or by file. It leaves the environment at once, so that no child inherits it.
import { readFileSync } from "node:fs";
import { ConnectorError, parseEnrolmentSecret, type EnrolmentSecret } from "@sallyport/protocol";
import type { Redactor } from "../redaction/index.ts";

/** Null when there is none, or none is `wanted`: it is used once, and who has an identity needs none. */
export function readEnrolment(
  environment: NodeJS.ProcessEnv,
  redactor: Redactor,
  wanted: boolean,
): EnrolmentSecret | null {
  const { SALLYPORT_ENROLL_SECRET: value, SALLYPORT_ENROLL_SECRET_FILE: file } = environment;
  delete environment["SALLYPORT_ENROLL_SECRET"];
  if (value !== undefined && value.trim() !== "") redactor.add(value.trim());
  if (!wanted) return null;
  const text = value ?? (file === undefined || file === "" ? undefined : readSecretFile(file));
  if (text === undefined || text.trim() === "") return null;
  redactor.add(text.trim());
  const secret = parseEnrolmentSecret(text);
  redactor.add(secret.secret.toString("base64url"));
  return secret;
}

function readSecretFile(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The enrolment secret in ${file} cannot be read (${(cause as NodeJS.ErrnoException).code}).`,
      { fix: "Correct SALLYPORT_ENROLL_SECRET_FILE, or the file's rights.", cause },
    );
  }
}
