// Who may do what at the API: sign-in links, passwords, web sessions, API tokens. Not the HTTP side of it (cloud/http)
// and not the agents' identity (cloud/link). cloud/http and main.ts import this file.
export * from "./attempts.ts";
export * from "./authenticator.ts";
export * from "./credentials.ts";
export * from "./passwords.ts";
