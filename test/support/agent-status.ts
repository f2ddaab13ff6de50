// What an agent with nothing in particular says of itself; a test names only what matters to it.
import type { AgentStatus } from "@sallyport/protocol";

export const agentStatus = (more: Partial<AgentStatus> = {}): AgentStatus => ({
  at: 1,
  version: "1",
  labels: {},
  paused: null,
  draining: false,
  stores: [],
  programs: [],
  engines: ["process"],
  policyDigest: "",
  commands: [],
  limits: { runs: 1, steps: 1 },
  ceilings: { deployments: 0, replicas: 0, cpus: 0, memoryBytes: 0 },
  serving: [],
  deployments: [],
  running: [],
  host: {
    hostname: "h",
    platform: "linux",
    cpus: 1,
    cpuLoad: null,
    memoryTotalBytes: 1,
    memoryFreeBytes: 1,
    diskTotalBytes: null,
    diskFreeBytes: null,
  },
  ...more,
});
