// A certificate authority of a test's own, by the openssl command.
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";

export interface CertificateOptions {
  /** How long the certificate is valid from now on; negative = it is expired. */
  days?: number;
  names?: string;
}

/** An authority and a certificate of it for localhost and 127.0.0.1, as PEM files in `dir`. */
export function makeAuthority(
  dir: string,
  { days = 2, names = "DNS:localhost,IP:127.0.0.1" }: CertificateOptions = {},
): { caFile: string; certFile: string; keyFile: string } {
  const file = (name: string) => join(dir, name);
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: dir, stdio: "ignore" });
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  // numbered: two authorities of one name confuse OpenSSL
  openssl(
    "req",
    "-x509",
    ...key,
    "-days",
    "2",
    "-subj",
    `/CN=test authority ${Math.random()}`,
    "-keyout",
    "ca-key.pem",
    "-out",
    "ca.pem",
  );
  openssl("req", ...key, "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem");
  writeFileSync(file("extensions"), `subjectAltName=${names}\nextendedKeyUsage=serverAuth\n`);
  openssl(
    "x509",
    "-req",
    "-in",
    "request.pem",
    "-CA",
    "ca.pem",
    "-CAkey",
    "ca-key.pem",
    "-CAcreateserial",
    "-days",
    String(days),
    "-extfile",
    "extensions",
    "-out",
    "cert.pem",
  );
  return { caFile: file("ca.pem"), certFile: file("cert.pem"), keyFile: file("key.pem") };
}
