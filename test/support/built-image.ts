// The image of packaging/serving, built into a test's own Engine by the project's own `npm run images`. Two test files
// may ask at once and the layers lie in one folder, so one waits for the other.
import { execFile } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { cleanEnv, repository } from "./launcher.ts";

export type ImageName = "agent" | "agent-serving" | "cloud" | "serving";

/** Id of the built image, `sha256:…`. */
export async function buildImage(socket: string, name: ImageName): Promise<string> {
  mkdirSync(join(repository, ".cache"), { recursive: true });
  const { stdout } = await promisify(execFile)(
    "flock",
    [
      join(repository, ".cache/images.lock"),
      process.execPath,
      join(repository, "packaging/launch/images.mjs"),
      name,
      "--json",
    ],
    { env: cleanEnv({ DOCKER_HOST: `unix://${socket}` }), maxBuffer: 16 * 1024 * 1024 },
  );
  const row = stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as { id: string });
  if (row[0] === undefined) throw new Error(`npm run images printed no image: ${stdout}`);
  return row[0].id;
}
