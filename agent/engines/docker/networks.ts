// Networks of containers: the agent's own internal one for what it serves, and networks that the customer made. An
// internal network stops forwarding; it does not cut off the Engine's machine itself (decision 0090).
import { existsSync, readFileSync } from "node:fs";
import { hostname } from "node:os";
import { ConnectorError } from "@sallyport/protocol";
import type { Logger } from "pino";
import { EngineRefusal, refused, type DockerClient } from "./client.ts";
import { LABEL_AGENT } from "./template.ts";

interface NetworkInfo {
  Id: string;
  Name: string;
  Driver: string;
  Internal: boolean;
  Labels?: Record<string, string> | null;
}

interface Self {
  Id: string;
  NetworkSettings: { Networks?: Record<string, { NetworkID: string }> | null };
}

export class Networks {
  readonly servingName: string;
  readonly #client: DockerClient;
  readonly #agentId: string;
  readonly #log: Logger;
  #serving: Promise<string> | null = null;

  constructor(client: DockerClient, agentId: string, log: Logger) {
    this.#client = client;
    this.#agentId = agentId;
    this.#log = log;
    this.servingName = `sallyport-${agentId}`;
  }

  /** Id of a network of the customer. */
  async named(name: string): Promise<string> {
    const found = await this.#find(name);
    const fix = "Make it at the Engine (docker network create), or name one that is there.";
    if (found === null)
      throw new ConnectorError("ENGINE_FAILED", `The Engine has no network named ${JSON.stringify(name)}.`, { fix });
    // The machine's own network is no network of a container.
    if (found.Driver === "host" || found.Driver === "null")
      throw new ConnectorError(
        "ENGINE_FAILED",
        `The network ${JSON.stringify(name)} is not one that keeps a container apart.`,
        { fix },
      );
    return found.Id;
  }

  /** Id of the network on which the agent reaches what it serves; made when it is not there. */
  async serving(): Promise<string> {
    this.#serving ??= this.#ensure();
    const mine = this.#serving;
    try {
      return await mine;
    } catch (error) {
      if (this.#serving === mine) this.#serving = null;
      throw error;
    }
  }

  /** Somebody may have removed it: look again. */
  forget(): void {
    this.#serving = null;
  }

  async #ensure(): Promise<string> {
    const self = await this.#self();
    const found = (await this.#find(this.servingName)) ?? (await this.#make(self === null));
    if (!found.Internal || found.Labels?.[LABEL_AGENT] !== this.#agentId)
      throw new ConnectorError(
        "ENGINE_FAILED",
        `The network ${this.servingName} at the Engine is not the one that this agent makes.`,
        {
          fix: "Remove it (docker network rm); the agent makes it anew.",
        },
      );
    if (self !== null && !Object.values(self.NetworkSettings.Networks ?? {}).some((n) => n.NetworkID === found.Id)) {
      try {
        await this.#client.call("POST", `/networks/${found.Id}/connect`, { body: { Container: self.Id } });
      } catch (error) {
        throw refused(`The agent's own container cannot join the network ${this.servingName}`, error);
      }
      this.#log.info({ network: this.servingName }, "the agent's container joined the network of what it serves");
    }
    return found.Id;
  }

  async #find(name: string): Promise<NetworkInfo | null> {
    try {
      // Listed, not asked for by name: there an id's beginning would do.
      const all = await this.#client.call<NetworkInfo[]>("GET", "/networks", { query: { filters: { name: [name] } } });
      return all.find((network) => network.Name === name) ?? null;
    } catch (error) {
      throw refused(`The network ${JSON.stringify(name)} cannot be looked up`, error);
    }
  }

  async #make(agentOnHost: boolean): Promise<NetworkInfo> {
    try {
      await this.#client.call("POST", "/networks/create", {
        body: {
          Name: this.servingName,
          CheckDuplicate: true,
          Driver: "bridge",
          Internal: true,
          Attachable: false,
          EnableIPv6: false,
          Labels: { [LABEL_AGENT]: this.#agentId },
          // Replicas have nothing to say to each other. An agent in a container is one of them, and must be heard.
          Options: { "com.docker.network.bridge.enable_icc": agentOnHost ? "false" : "true" },
        },
      });
    } catch (error) {
      if (!(error instanceof EngineRefusal) || error.status !== 409)
        throw refused(`The network ${this.servingName} cannot be made`, error);
    }
    const made = await this.#find(this.servingName);
    if (made === null)
      throw new ConnectorError("ENGINE_FAILED", `The network ${this.servingName} was made and is not there.`);
    return made;
  }

  /** The container that this process runs in, when this Engine knows it. */
  async #self(): Promise<Self | null> {
    if (!existsSync("/.dockerenv")) return null;
    for (const id of ownIds()) {
      const found = await this.#client.find<Self>(`/containers/${id}/json`);
      if (found?.Id.startsWith(id) === true) return found;
    }
    return null;
  }
}

/** By the files that the Engine mounts into each container, then by the name that a container has unless told otherwise. */
function ownIds(): string[] {
  let mounts = "";
  try {
    mounts = readFileSync("/proc/self/mountinfo", "utf8");
  } catch {
    // not Linux
  }
  const ids = [...mounts.matchAll(/\/containers\/([0-9a-f]{64})\//g)].map((found) => found[1]!);
  if (/^[0-9a-f]{12}$/.test(hostname())) ids.push(hostname());
  return [...new Set(ids)];
}
