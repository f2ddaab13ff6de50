// A step whose effect its targets count: a line in a file ("-" = none) and a request to a server. Then it works for a
// while and leaves an output. Arguments: KEY FILE URL HOLD_MS OUT
import { appendFileSync, writeFileSync } from "node:fs";
import { request } from "node:http";

const [key, file, url, holdMs, out] = process.argv.slice(2);
if (file !== "-") appendFileSync(file, `${key}\n`);
await new Promise((resolve, reject) => {
  const post = request(url, { method: "POST", agent: false }, (answer) => answer.resume().on("end", resolve));
  post.on("error", reject);
  post.end(key);
});
console.log(`did ${key}`);
await new Promise((resolve) => setTimeout(resolve, Number(holdMs)));
writeFileSync(out, key);
