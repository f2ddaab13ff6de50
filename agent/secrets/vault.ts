// Reads KV version 2 of HashiCorp Vault through node-vault, with a token. The library is imported at the first use.
import { readFile } from "node:fs/promises";
import { ConnectorError } from "@sallyport/protocol";
import { isTlsError } from "./tls-errors.ts";
import { vaultRequest, type VaultRequestOptions } from "./vault-request.ts";

export interface VaultReader {
  /** All fields of the secret's current version. `text` is the reference, for messages. */
  read(
    mount: string,
    path: string,
    token: string,
    text: string,
    signal?: AbortSignal,
  ): Promise<Record<string, unknown>>;
}

/** The little of node-vault that is used; its own type says `any`. */
interface NodeVaultClient {
  namespace: string | undefined;
  pathPrefix: string;
  token: string;
  read(path: string): Promise<{ data?: { data?: Record<string, unknown> | null } } | null>;
}
type NodeVault = (options: Record<string, unknown>) => NodeVaultClient;

export function vaultReader(config: { address: string; ca: string | null }): VaultReader {
  const origin = new URL(config.address).origin;
  return {
    async read(mount, path, token, text, signal) {
      const { default: nodeVault } = (await import("node-vault")) as unknown as { default: NodeVault };
      const ca = config.ca === null ? null : await readCa(config.ca);
      const client = nodeVault({
        apiVersion: "v1",
        endpoint: config.address,
        token,
        // Its debug output would hold paths.
        debug: () => {},
        "request-promise": {
          defaults: () => (options: VaultRequestOptions) => vaultRequest(origin, ca, signal, options),
        },
      });
      // Unset ones were filled from VAULT_NAMESPACE and VAULT_PREFIX: the file alone decides.
      client.namespace = undefined;
      client.pathPrefix = "";
      client.token = token;
      let answer;
      try {
        answer = await client.read(`${mount}/data/${path}`);
      } catch (error) {
        throw vaultError(error, text, config);
      }
      const data = answer?.data?.data;
      if (data === undefined || data === null) {
        throw new ConnectorError(
          "SECRET_UNKNOWN",
          `Vault has no current version of the secret that ${text} refers to.`,
          { fix: "Write it, or restore a version of it. The mount must be a KV version 2." },
        );
      }
      return data;
    },
  };
}

async function readCa(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (cause) {
    throw new ConnectorError("CONFIG_INVALID", `secrets.vault.ca: the file ${file} cannot be read.`, {
      fix: "Correct the path, or let the agent's user read it.",
      cause,
    });
  }
}

/** What Vault or the way to it answered, in our codes. Its own text is not passed on. */
function vaultError(error: unknown, text: string, { address, ca }: { address: string; ca: string | null }): unknown {
  const { response, code, name } = error as { response?: { statusCode?: number }; code?: string; name?: string };
  const status = response?.statusCode;
  // No cause where the answer may hold a value: only its status is kept.
  if (status === 403 || status === 401) {
    return new ConnectorError("SECRET_DENIED", `Vault at ${address} refused to read ${text}.`, {
      fix: "Check that the token in secrets.vault.token is valid and that its Vault policy allows reading this path.",
    });
  }
  if (status === 404) {
    return new ConnectorError("SECRET_UNKNOWN", `Vault at ${address} has nothing at ${text}.`, {
      fix: "Correct mount and path in the reference (without `data/`), or write the secret. The mount must be a KV version 2.",
    });
  }
  if (status === 503) {
    return new ConnectorError("SECRET_UNREACHABLE", `Vault at ${address} is sealed or in standby.`, {
      fix: "Unseal it, or point secrets.vault.address at the active node.",
    });
  }
  if (status !== undefined)
    return new ConnectorError("SECRET_UNREACHABLE", `Vault at ${address} answered with status ${status} to ${text}.`, {
      fix: "Look into Vault's own log.",
    });
  if (name === "AbortError" || code === "ABORT_ERR")
    return new ConnectorError("CANCELLED", "The work was cancelled.", { cause: error });
  if (code === "EREDIRECT") {
    return new ConnectorError(
      "SECRET_UNREACHABLE",
      `Vault at ${address} answered with a redirect, which is never followed with a token.`,
      { fix: "Point secrets.vault.address at the active node, or at a balancer in front of it." },
    );
  }
  if (isTlsError(code)) {
    return new ConnectorError(
      "SECRET_UNREACHABLE",
      `The certificate of Vault at ${address} is not trusted (${code}).`,
      {
        fix:
          ca === null
            ? "Set secrets.vault.ca to the PEM file of the CA that signed it."
            : `Check that ${ca} (secrets.vault.ca) holds the CA that signed it, and that the address's name is in the certificate.`,
        cause: error,
      },
    );
  }
  return new ConnectorError(
    "SECRET_UNREACHABLE",
    `No connection to Vault at ${address}${code === undefined ? "" : ` (${code})`}.`,
    { fix: "Check secrets.vault.address, the network and that Vault runs.", cause: error },
  );
}
