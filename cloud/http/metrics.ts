// Figures of the API. Routes are templates (`/v1/runs/:id`), so what is asked for is no label.
import { Counter, Histogram, type Registry } from "prom-client";

export interface HttpMetrics {
  answered(method: string, route: string, status: number, ms: number): void;
}

export function httpMetrics(registry: Registry): HttpMetrics {
  const requests = new Counter({
    name: "sallyport_cloud_http_requests_total",
    help: "Requests that were answered, by method, route and class of status",
    labelNames: ["method", "route", "status"],
    registers: [registry],
  });
  const seconds = new Histogram({
    name: "sallyport_cloud_http_request_seconds",
    help: "From a request's head to the end of its answer, by route; streams and downloads take as long as they are read",
    labelNames: ["route"],
    buckets: [0.002, 0.01, 0.05, 0.25, 1, 5, 30],
    registers: [registry],
  });
  return {
    answered(method, route, status, ms) {
      requests.inc({ method, route, status: `${Math.floor(status / 100)}xx` });
      seconds.observe({ route }, ms / 1000);
    },
  };
}
