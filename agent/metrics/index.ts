// The agent's figures in Prometheus' text format, and the HTTP answers that carry them. Knows no part of the agent: who
// wires it says what is counted. Only wiring and the control socket import this door.
export { Figures, type Sample } from "./figures.ts";
export { answerProbe, type ProbeSources } from "./probe.ts";
export { MetricsListener } from "./metrics-listener.ts";
export { LoopDelay } from "./loop-delay.ts";
