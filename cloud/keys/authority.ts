// The control plane's own certificate authority, for those who bring no certificate: made at first start, its
// certificate pinned by each enrolment secret. It signs one server certificate, renewed at start when it is near its end.
import { createHash, webcrypto } from "node:crypto";
import { isIP } from "node:net";
import { join } from "node:path";
import { ConnectorError, certificateFingerprint } from "@sallyport/protocol";
// Before x509 itself: its containers need the metadata API that this brings.
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { readPrivateFile, writePrivateFile } from "./private-file.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const DAY_MS = 24 * 3600_000;
const CA_LIFETIME_MS = 10 * 365 * DAY_MS;
const SERVER_LIFETIME_MS = 90 * DAY_MS;
/** A server certificate with less than this left is made anew at start. */
const RENEW_BEFORE_MS = 30 * DAY_MS;
/** Peers' clocks may be behind ours: by a whole day, they can still connect. */
const BACKDATE_MS = 48 * 3600_000;

export interface ServerTls {
  cert: string;
  key: string;
  /** base64url sha-256 of the CA's DER; null when the certificate was given and is trusted by other means. */
  caFingerprint: string | null;
  /** Path of the CA's certificate, for clients; null when there is none of ours. */
  caFile: string | null;
}

const serial = (): string =>
  Buffer.from(webcrypto.getRandomValues(new Uint8Array(16)))
    .toString("hex")
    .replace(/^[89a-f]/, "1");

async function exportKey(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey("pkcs8", key)).toString("base64");
  return `-----BEGIN PRIVATE KEY-----\n${der.match(/.{1,64}/g)!.join("\n")}\n-----END PRIVATE KEY-----\n`;
}
async function importKey(pem: string): Promise<webcrypto.CryptoKey> {
  return webcrypto.subtle.importKey(
    "pkcs8",
    Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ""), "base64"),
    ALGORITHM,
    true,
    ["sign"],
  );
}

async function makeAuthority(now: number): Promise<{ cert: x509.X509Certificate; key: webcrypto.CryptoKey }> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const cert = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: serial(),
      name: "CN=Sallyport control plane CA",
      notBefore: new Date(now - BACKDATE_MS),
      notAfter: new Date(now + CA_LIFETIME_MS),
      signingAlgorithm: ALGORITHM,
      keys: keys,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    },
    webcrypto,
  );
  return { cert, key: keys.privateKey };
}

const namesOf = (cert: x509.X509Certificate): string[] => {
  const extension = cert.getExtension(x509.SubjectAlternativeNameExtension);
  return extension === null ? [] : extension.names.items.map((name) => name.value.toLowerCase());
};

/**
 * A certificate that lasts as long as this process and is signed by nobody: for a port whose callers learn its digest by
 * other means.
 */
export async function passingCertificate(now: number): Promise<{ cert: string; key: string; digest: string }> {
  x509.cryptoProvider.set(webcrypto);
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const cert = await x509.X509CertificateGenerator.createSelfSigned(
    {
      serialNumber: serial(),
      name: "CN=Sallyport control plane process",
      notBefore: new Date(now - BACKDATE_MS),
      notAfter: new Date(now + CA_LIFETIME_MS),
      signingAlgorithm: ALGORITHM,
      keys,
    },
    webcrypto,
  );
  const digest = createHash("sha256").update(new Uint8Array(cert.rawData)).digest("hex");
  return { cert: `${cert.toString("pem")}\n`, key: await exportKey(keys.privateKey), digest };
}

/** The two files of a new authority, in a folder that all processes of a control plane are given. */
export async function makeSharedAuthority(folder: string, now: number): Promise<void> {
  x509.cryptoProvider.set(webcrypto);
  const made = await makeAuthority(now);
  writePrivateFile(join(folder, "ca.key"), await exportKey(made.key), { exclusive: true });
  writePrivateFile(join(folder, "ca.crt"), `${made.cert.toString("pem")}\n`, { exclusive: true });
}

/** `names`: host names and addresses that clients dial. Both files stay when they still serve. */
export async function ownTls(folder: string, names: readonly string[], now: number): Promise<ServerTls> {
  x509.cryptoProvider.set(webcrypto);
  const paths = {
    caCert: join(folder, "ca.crt"),
    caKey: join(folder, "ca.key"),
    cert: join(folder, "server.crt"),
    key: join(folder, "server.key"),
  };
  try {
    let caPem = readPrivateFile(paths.caCert);
    let caKeyPem = readPrivateFile(paths.caKey);
    if (caPem === null || caKeyPem === null) {
      if (caPem !== null) throw new Error(`${paths.caKey} is missing`);
      const made = await makeAuthority(now);
      // The key first: a certificate without its key could never be replaced unnoticed.
      if (caKeyPem === null) writePrivateFile(paths.caKey, await exportKey(made.key));
      else throw new Error(`${paths.caCert} is missing`);
      writePrivateFile(paths.caCert, `${made.cert.toString("pem")}\n`);
      caPem = readPrivateFile(paths.caCert)!;
      caKeyPem = readPrivateFile(paths.caKey)!;
    }
    const ca = new x509.X509Certificate(caPem);
    const wanted = [...new Set(["localhost", "127.0.0.1", "::1", ...names.map((name) => name.toLowerCase())])];
    const current = readPrivateFile(paths.cert);
    const currentKey = readPrivateFile(paths.key);
    if (current !== null && currentKey !== null) {
      const cert = new x509.X509Certificate(current);
      const has = new Set(namesOf(cert).map(canonical));
      const fresh = cert.notAfter.getTime() - now > RENEW_BEFORE_MS && cert.notBefore.getTime() <= now;
      if (
        fresh &&
        wanted.every((name) => has.has(canonical(name))) &&
        (await cert.verify({ publicKey: ca, signatureOnly: true }, webcrypto))
      ) {
        return {
          cert: `${current}${caPem}`,
          key: currentKey,
          caFingerprint: certificateFingerprint(new Uint8Array(ca.rawData)),
          caFile: paths.caCert,
        };
      }
    }
    const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
    const cert = await x509.X509CertificateGenerator.create(
      {
        serialNumber: serial(),
        subject: "CN=Sallyport control plane",
        issuer: ca.subject,
        notBefore: new Date(now - BACKDATE_MS),
        notAfter: new Date(Math.min(now + SERVER_LIFETIME_MS, ca.notAfter.getTime())),
        signingAlgorithm: ALGORITHM,
        publicKey: keys.publicKey,
        signingKey: await importKey(caKeyPem),
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
          new x509.SubjectAlternativeNameExtension(
            wanted.map((name) => ({ type: isIP(name) === 0 ? ("dns" as const) : ("ip" as const), value: name })),
          ),
          await x509.AuthorityKeyIdentifierExtension.create(ca.publicKey, false, webcrypto),
          await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
        ],
      },
      webcrypto,
    );
    const key = await exportKey(keys.privateKey);
    const pem = `${cert.toString("pem")}\n`;
    writePrivateFile(paths.key, key);
    writePrivateFile(paths.cert, pem);
    return {
      cert: `${pem}${caPem}`,
      key,
      caFingerprint: certificateFingerprint(new Uint8Array(ca.rawData)),
      caFile: paths.caCert,
    };
  } catch (cause) {
    if (cause instanceof ConnectorError) throw cause;
    throw new ConnectorError(
      "CONFIG_INVALID",
      `The control plane's own CA in ${folder} cannot be used${cause instanceof Error ? `: ${cause.message}` : ""}.`,
      {
        fix: "Restore the folder from a backup, or bring a certificate by --tls-cert and --tls-key. A new CA means enrolling every agent anew.",
        cause,
      },
    );
  }
}

/** One spelling of an address: `::1` and `0:0:0:0:0:0:0:1` are the same. */
function canonical(name: string): string {
  if (isIP(name) !== 6) return name;
  return new URL(`http://[${name}]`).hostname;
}
