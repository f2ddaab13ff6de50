// What the pages ask for, and how fresh it must be. Changes arrive by SSE (changes.ts); the slow polls beside them are
// for what no event tells: an agent's state is derived from the age of its last sign of life.
import { QueryCache, QueryClient, infiniteQueryOptions, queryOptions, useInfiniteQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import { api, artifactUrls, isApiError, query } from "./client.ts";
import { nowMs } from "./clock.ts";
import type {
  Agent,
  ApiToken,
  ArtifactList,
  ArtifactPreview,
  ArtifactStat,
  Command,
  CommandDetail,
  Connection,
  Deployment,
  DeploymentDetail,
  DeploymentRevision,
  Enrollment,
  Me,
  Page,
  Pool,
  Rollup,
  Run,
  RunDetail,
} from "./types.ts";

const AGENT_POLL_MS = 5_000;
const RUN_POLL_MS = 15_000;

export function makeQueryClient(onSignedOut: () => void): QueryClient {
  return new QueryClient({
    queryCache: new QueryCache({
      onError: (error) => {
        if (isApiError(error) && error.problem.status === 401) onSignedOut();
      },
    }),
    defaultOptions: {
      queries: {
        staleTime: 2_000,
        refetchOnWindowFocus: true,
        retry: (count, error) =>
          count < 2 && isApiError(error) && (error.problem.status === 0 || error.problem.code === "LINK_LOST"),
      },
    },
  });
}

export const meQuery = queryOptions({
  queryKey: ["me"],
  queryFn: ({ signal }) => api.get<Me>("/v1/me", signal),
  staleTime: 60_000,
});

const all =
  <T>(path: string) =>
  async ({ signal }: { signal: AbortSignal }): Promise<T[]> => {
    const items: T[] = [];
    let cursor: string | null = null;
    // Fleets and pools are small; the cap keeps a broken cursor from turning this into an endless loop.
    for (let pages = 0; pages < 40; pages++) {
      const page: Page<T> = await api.get<Page<T>>(`${path}${query({ limit: 500, cursor })}`, signal);
      items.push(...page.items);
      cursor = page.nextCursor;
      if (cursor === null) break;
    }
    return items;
  };

export const agentsQuery = queryOptions({
  queryKey: ["agents"],
  queryFn: all<Agent>("/v1/agents"),
  refetchInterval: AGENT_POLL_MS,
});
export const agentQuery = (id: string) =>
  queryOptions({
    queryKey: ["agents", id],
    queryFn: ({ signal }) => api.get<Agent>(`/v1/agents/${encodeURIComponent(id)}`, signal),
    refetchInterval: AGENT_POLL_MS,
  });
/** The newest; the control plane keeps no more of an agent. */
export const connectionsQuery = (id: string) =>
  queryOptions({
    queryKey: ["agents", id, "connections"],
    queryFn: all<Connection>(`/v1/agents/${encodeURIComponent(id)}/connections`),
    refetchInterval: AGENT_POLL_MS * 3,
  });
export const poolsQuery = queryOptions({
  queryKey: ["pools"],
  queryFn: all<Pool>("/v1/pools"),
  refetchInterval: AGENT_POLL_MS * 2,
});
export const enrollmentsQuery = queryOptions({
  queryKey: ["enrollments"],
  queryFn: all<Enrollment>("/v1/enrollments"),
  refetchInterval: 15_000,
});
export const enrollmentQuery = (id: string) =>
  queryOptions({
    queryKey: ["enrollments", id],
    queryFn: ({ signal }) => api.get<Enrollment>(`/v1/enrollments/${encodeURIComponent(id)}`, signal),
    refetchInterval: 2_000,
  });
export const tokensQuery = queryOptions({ queryKey: ["tokens"], queryFn: all<ApiToken>("/v1/tokens") });

const pages = <T>(key: string, path: string, refetchInterval: number | false) =>
  infiniteQueryOptions({
    queryKey: [key, "list"],
    queryFn: ({ pageParam, signal }) => api.get<Page<T>>(`${path}${query({ limit: 100, cursor: pageParam })}`, signal),
    initialPageParam: null as string | null,
    getNextPageParam: (last) => last.nextCursor,
    refetchInterval,
  });
export const runsQuery = pages<Run>("runs", "/v1/runs", RUN_POLL_MS);
export const commandsQuery = pages<Command>("commands", "/v1/commands", RUN_POLL_MS);

/** An infinite query with its pages flattened; `items` keeps its identity while nothing changes. */
export function useRuns() {
  const result = useInfiniteQuery(runsQuery);
  const items = useMemo(() => result.data?.pages.flatMap((page) => page.items), [result.data]);
  return { ...result, items };
}
export function useCommands() {
  const result = useInfiniteQuery(commandsQuery);
  const items = useMemo(() => result.data?.pages.flatMap((page) => page.items), [result.data]);
  return { ...result, items };
}

const ENDED = new Set(["succeeded", "failed", "cancelled"]);
export const runQuery = (id: string) =>
  queryOptions({
    queryKey: ["runs", id],
    queryFn: ({ signal }) => api.get<RunDetail>(`/v1/runs/${encodeURIComponent(id)}`, signal),
    refetchInterval: (q) => (q.state.data && ENDED.has(q.state.data.state) ? false : 5_000),
  });
export const commandQuery = (id: string) =>
  queryOptions({
    queryKey: ["commands", id],
    queryFn: ({ signal }) => api.get<CommandDetail>(`/v1/commands/${encodeURIComponent(id)}`, signal),
    // Why it waits is derived when read: no event tells that an agent came, or that a slot became free.
    refetchInterval: (q) => (q.state.data && q.state.data.endedAt !== null ? false : 5_000),
  });

/** Pages of few rows each: replicas come and go, and what an agent last said grows old, without an event. */
const DEPLOYMENT_POLL_MS = 5_000;
const deploymentUrl = (id: string) => `/v1/deployments/${encodeURIComponent(id)}`;
export const deploymentsQuery = queryOptions({
  queryKey: ["deployments"],
  queryFn: all<Deployment>("/v1/deployments"),
  refetchInterval: DEPLOYMENT_POLL_MS * 2,
});
export const deploymentQuery = (id: string) =>
  queryOptions({
    queryKey: ["deployments", id],
    queryFn: ({ signal }) => api.get<DeploymentDetail>(deploymentUrl(id), signal),
    refetchInterval: DEPLOYMENT_POLL_MS,
  });
export const revisionsQuery = (id: string) =>
  queryOptions({
    queryKey: ["deployments", id, "revisions"],
    queryFn: all<DeploymentRevision>(`${deploymentUrl(id)}/revisions`),
  });
export const HOUR_MS = 3600_000;
/** One row a minute, of the last hour. */
export const rollupsQuery = (id: string) =>
  queryOptions({
    queryKey: ["deployments", id, "rollups"],
    queryFn: async ({ signal }) =>
      (
        await api.get<{ items: Rollup[] }>(
          `${deploymentUrl(id)}/rollups${query({ since: Math.floor(nowMs() - HOUR_MS) })}`,
          signal,
        )
      ).items,
    refetchInterval: 20_000,
  });

export const listQuery = (pool: string, store: string, path: string) =>
  infiniteQueryOptions({
    queryKey: ["artifacts", pool, store, "list", path],
    queryFn: ({ pageParam, signal }) => api.get<ArtifactList>(artifactUrls.list(pool, store, path, pageParam), signal),
    initialPageParam: null as string | null,
    getNextPageParam: (last) => last.nextCursor,
    staleTime: 15_000,
    // Each list is a read at the customer, written into its audit log: never by mere focus of the window.
    refetchOnWindowFocus: false,
  });
export const previewQuery = (pool: string, store: string, path: string, rows?: number) =>
  queryOptions({
    queryKey: ["artifacts", pool, store, "preview", path, rows ?? 0],
    queryFn: ({ signal }) => api.get<ArtifactPreview>(artifactUrls.preview(pool, store, path, rows), signal),
    staleTime: 60_000,
    refetchOnWindowFocus: false,
  });
export const statQuery = (pool: string, store: string, path: string, digest: boolean) =>
  queryOptions({
    queryKey: ["artifacts", pool, store, "stat", path, digest],
    queryFn: ({ signal }) => api.get<ArtifactStat>(artifactUrls.stat(pool, store, path, digest), signal),
    staleTime: Infinity,
    refetchOnWindowFocus: false,
  });
