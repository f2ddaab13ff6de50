// The processes of the control plane and how they hear of each other: for operators, and the same in each workspace.
import { processesSchema } from "../api.ts";
import type { RoutePlugin } from "../routes.ts";

type Processes = (typeof processesSchema)["_output"];

export const processRoutes =
  (deps: { processes: () => Processes["items"]; health: () => Processes["backplane"] }): RoutePlugin =>
  async (app) => {
    app.get(
      "/v1/processes",
      {
        schema: {
          tags: ["control plane"],
          summary: "Processes of the control plane, and how they hear of each other",
          response: { 200: processesSchema },
        },
      },
      async () => {
        const { kind, connected, text } = deps.health();
        return { items: deps.processes(), backplane: { kind, connected, text } };
      },
    );
  };
