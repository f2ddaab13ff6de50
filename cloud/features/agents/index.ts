// Agents and pools as people see them, and the lines that enrol one. Not the link and not the tables.
// cloud/http's routes import this file.
export * from "./agent-view.ts";
export * from "./enrolment-commands.ts";
export * from "./new-enrolment.ts";
