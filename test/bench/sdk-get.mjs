// Starts the SDK's own download the way a program of ours starts, V8's settings included.
import { becomeProgram } from "../../packaging/launch/launch.mjs";

await becomeProgram(import.meta.url, "./sdk-get");
