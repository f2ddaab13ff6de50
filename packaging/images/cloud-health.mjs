// The control plane's health check inside its container: whether it answers itself, by /healthz, on the port it listens
// on. Its certificate is for other names than this address, and nothing secret is asked for: it is not checked.
import { get as getClear } from "node:http";
import { get as getTls } from "node:https";
import { hostname } from "node:os";

const listen = process.env.SALLYPORT_CLOUD_LISTEN ?? "0.0.0.0:8443";
const colon = listen.lastIndexOf(":");
const host = listen.slice(0, colon).replace(/^\[|\]$/g, "");
const everywhere = host === "0.0.0.0" || host === "::";
const address = {
  host: everywhere ? "127.0.0.1" : host,
  port: Number(listen.slice(colon + 1)),
  path: "/healthz",
  headers: { host: everywhere ? hostname() : host },
};
const clear = process.env.SALLYPORT_CLOUD_TLS === "none";
const asked = clear ? getClear(address) : getTls({ ...address, rejectUnauthorized: false });
asked.on("response", (response) => process.exit(response.statusCode === 200 ? 0 : 1));
asked.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
