// Makes, at the first start, all that production.yaml keeps to itself: the keys that the processes share, two passwords,
// and the configuration that has them. The certificate of NATS is made anew each time: it lasts 90 days.
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const [keys, shared] = ["/run/keys", "/run/shared"];
const cloud = (...args) => execFileSync("/usr/local/bin/sallyport-cloud", args, { stdio: "inherit" });
const password = (name) => {
  const file = `${shared}/${name}`;
  if (!existsSync(file)) writeFileSync(file, randomBytes(24).toString("hex"), { mode: 0o644 });
  return readFileSync(file, "utf8");
};
const write = (name, text) => writeFileSync(`${shared}/${name}`, text, { mode: 0o600 });

if (!existsSync(`${keys}/identity.json`)) cloud("keys", keys);
cloud("certificate", keys, shared, "nats");
const [database, nats] = [password("database-password"), password("nats-password")];
write(
  "cloud.yaml",
  `database: postgres://sallyport:${database}@database:5432/sallyport?sslmode=disable
natsUrl: tls://sallyport:${nats}@nats:4222
natsCa: ${shared}/ca.crt
keys: ${keys}
peerListen: 0.0.0.0:8444
`,
);
write(
  "nats.conf",
  `listen: "0.0.0.0:4222"
tls { cert_file: "${shared}/server.crt", key_file: "${shared}/server.key" }
authorization { users: [ { user: sallyport, password: "${nats}" } ] }
`,
);
