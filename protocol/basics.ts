// The second door, for threads that judge no message: errors and identifiers, without the schemas, whose library alone
// takes 22 MB and a tenth of a second in each thread that loads it (measured).
export * from "./errors.ts";
export { newId } from "./new-id.ts";
