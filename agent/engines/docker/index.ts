// The engine `docker`: steps and replicas as containers of a Docker Engine, each from one closed template. It holds the
// Engine's socket, which is root on the Engine's machine: nothing that a command carries reaches a request but the few
// values that template.ts names. No builds, no exec, no published ports. Main.ts makes it; features know the port only.
export { createDockerEngine, type DockerEngine, type DockerEngineOptions } from "./docker-engine.ts";
