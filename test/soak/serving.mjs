// A runtime that keeps the serving contract and does nothing but be there. Its start is an effect: a line in the file
// that the deployment names in EFFECTS (absent where a container cannot reach one), with the kernel's time of its birth.
import { appendFileSync, readFileSync } from "node:fs";
import { createServer } from "node:http";

const args = process.argv.slice(2);
const of = (name) => (args.includes(`--${name}`) ? args[args.indexOf(`--${name}`) + 1] : undefined);
if (process.env.EFFECTS) {
  const born = readFileSync("/proc/self/stat", "utf8").split(") ")[1].split(" ")[19];
  appendFileSync(process.env.EFFECTS, `${process.env.SALLYPORT_WORK} ${born}\n`);
}
const server = createServer((request, response) => {
  const known = request.headers.authorization === `Bearer ${process.env.SALLYPORT_SERVING_TOKEN}`;
  response.writeHead(known ? 200 : 401, { "content-type": "application/json" });
  response.end("{}");
});
if (of("socket")) server.listen(of("socket"));
else server.listen(Number(of("port")), of("host") ?? "0.0.0.0");
process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
