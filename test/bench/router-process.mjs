// Starts a process of the router's bench the way a program of ours starts, V8's settings included.
import { becomeProgram } from "../../packaging/launch/launch.mjs";

await becomeProgram(import.meta.url, "./router-process");
