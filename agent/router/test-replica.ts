// A replica for the router's tests, by Node's own HTTP server: in the test's process, or as one that can be killed
// (`node test-replica.ts SOCKET NAME`). Answers with what it was sent, and its name.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { pathToFileURL } from "node:url";

export interface Echo {
  replica: string;
  method: string;
  path: string;
  headers: Record<string, string | string[] | undefined>;
  raw: string[];
  /** base64 */
  body: string;
}

export function echo(name: string) {
  return (request: IncomingMessage, response: ServerResponse): void => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      const answer: Echo = {
        replica: name,
        method: request.method!,
        path: request.url!,
        headers: request.headers,
        raw: request.rawHeaders,
        body: Buffer.concat(chunks).toString("base64"),
      };
      response.writeHead(200, { "content-type": "application/json", connection: "keep-alive, x-gone", "x-gone": "1" });
      response.end(JSON.stringify(answer));
    });
  };
}

export function listen(server: Server, socket: string): Promise<void> {
  return new Promise((resolve) => server.listen(socket, resolve));
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [socket, name] = process.argv.slice(2);
  process.on("disconnect", () => process.exit(0));
  await listen(createServer(echo(name!)), socket!);
  process.send!("ready");
}
