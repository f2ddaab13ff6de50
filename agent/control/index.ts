// The customer's hand on the agent, at its own machine and without the control plane: ps, pause, resume, stop, ready,
// endpoint.
// A unix socket that only the agent's user can reach, what it answers, and the client that the program's sub-commands
// use. Main.ts wires it; nothing else imports it.
export { ControlServer, type ControlOperations, type LocalEndpoint } from "./control-server.ts";
export { askAgent } from "./control-client.ts";
export { lockState, type StateLock } from "./state-lock.ts";
export { PauseFile } from "./pause-file.ts";
export { stopWork } from "./stop-work.ts";
export { renderPs, type HeldBack, type PsAnswer, type PsCommand, type PsDeployment, type PsStep } from "./ps.ts";
