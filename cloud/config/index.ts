// The control plane's configuration: options, their origins, and the compiled form. It starts nothing and opens nothing
// but the file it is told. Only main.ts imports this file.
export * from "./config.ts";
export * from "./options.ts";
