// Loaded into each test process after tap's own instrumentation (.taprc), and takes back what would leak into the
// programs that tests start: tap makes every spawn, also one with an environment of its own, load its hooks through
// NODE_OPTIONS. Programs under test must run as they do for users. Not imported by anything.
const registered = globalThis[Symbol.for("process-on-spawn@*:singletonId")];
if (registered) registered.listeners.length = 0;
delete process.env.NODE_OPTIONS;
process.execArgv = [];
