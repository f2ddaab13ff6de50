// The sentences that every kind of store says alike.
import { ConnectorError } from "@sallyport/protocol";

const at = (store: string, path: string): string =>
  path === "" ? `the root of store ${store}` : `${JSON.stringify(path)} in store ${store}`;

export const notFound = (store: string, path: string, cause?: unknown): ConnectorError =>
  new ConnectorError("ARTIFACT_NOT_FOUND", `There is nothing at ${at(store, path)}.`, {
    fix: "List the folder above it to see what is there.",
    cause,
  });
export const notAFile = (store: string, path: string): ConnectorError =>
  new ConnectorError("NOT_A_FILE", `A file is wanted, but ${at(store, path)} is a folder.`, {
    fix: "Name a file in it.",
  });
export const notATree = (store: string, path: string): ConnectorError =>
  new ConnectorError("NOT_A_FILE", `A folder is wanted, but ${at(store, path)} is a file.`, {
    fix: "Name the folder that it is in.",
  });
export const exists = (store: string, path: string, cause?: unknown): ConnectorError =>
  new ConnectorError(
    "ARTIFACT_EXISTS",
    `There is something at ${at(store, path)} already, and the write was to make it anew.`,
    { fix: "Choose another path, or state the version to replace.", cause },
  );
export const preconditionFailed = (
  store: string,
  path: string,
  current: string | null,
  cause?: unknown,
): ConnectorError =>
  new ConnectorError("PRECONDITION_FAILED", `The version given is not the current one of ${at(store, path)}.`, {
    fix: "Look at it again, then repeat with its current version.",
    cause,
    ...(current === null ? {} : { details: { currentVersion: current } }),
  });
export const rangeInvalid = (store: string, path: string, totalBytes: number): ConnectorError =>
  new ConnectorError("RANGE_INVALID", `The range lies beyond the ${totalBytes} bytes of ${at(store, path)}.`, {
    fix: "Ask for a range within its size.",
    details: { totalBytes },
  });
export const digestMismatch = (store: string, path: string, stated: string, got: string): ConnectorError =>
  new ConnectorError(
    "DIGEST_MISMATCH",
    `The bytes for ${at(store, path)} have the digest ${got}, stated was ${stated}. What was there is unchanged.`,
    { fix: "Send the bytes again.", details: { stated, got } },
  );
export const sizeMismatch = (store: string, path: string, stated: number, got: number): ConnectorError =>
  new ConnectorError(
    "INPUT_INVALID",
    `${got} bytes came for ${at(store, path)}, stated were ${stated}. What was there is unchanged.`,
    { fix: "State the size of what is sent." },
  );
export const cursorInvalid = (): ConnectorError =>
  new ConnectorError("INPUT_INVALID", "The cursor is not one that this list gave.", {
    fix: "List again from the beginning.",
  });
