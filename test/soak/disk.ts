// npm run soak:disk: the journal and the database killed at each of their writes, fsyncs and renames, one after the other
// (about 900, a quarter of an hour), and given a disk that fails, is full or is read-only for a while. The same file in
// `npm test` takes eight of those points. Needs strace.
process.env["SALLYPORT_FAULT_POINTS"] ??= "100000";
process.env["TAP_TIMEOUT"] ??= "7200";
await import("../faults/writes.test.ts");
export {};
