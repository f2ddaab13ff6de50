// Starts a process of the link bench the way a program of ours starts, V8's settings included; the peers alike.
import { becomeProgram } from "../../../packaging/launch/launch.mjs";

await becomeProgram(import.meta.url, "./process");
