// Asks the agent that runs in a state directory, by its control socket.
import { connect } from "node:net";
import { ConnectorError, ndjsonLine, readNdjson } from "@sallyport/protocol";
import type { ControlAnswer, ControlRequest } from "./control-server.ts";
import { socketAddress } from "./socket-path.ts";

/** Stopping waits for what it stops. */
const PATIENCE_MS = 60_000;
const ABSENT = new Set(["ENOENT", "ECONNREFUSED", "ENOTDIR"]);

/** Throws AGENT_OFFLINE when no agent runs there (`details.absent`), or it does not answer. `timeoutMs`: give up after this. */
export async function askAgent(stateDir: string, request: ControlRequest, timeoutMs = PATIENCE_MS): Promise<unknown> {
  let address: ReturnType<typeof socketAddress> | null = null;
  try {
    address = socketAddress(stateDir);
    const socket = connect(address.path);
    socket.setTimeout(timeoutMs, () => socket.destroy(Object.assign(new Error("no answer"), { code: "ETIMEDOUT" })));
    await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
    socket.end(ndjsonLine(request));
    for await (const line of readNdjson(socket, 16 * 1024 * 1024)) {
      const answer = line as ControlAnswer;
      if ("error" in answer) throw ConnectorError.fromBody(answer.error);
      return answer.value;
    }
    throw Object.assign(new Error("no answer"), { code: "EPIPE" });
  } catch (error) {
    if (error instanceof ConnectorError) throw error;
    const { code } = error as NodeJS.ErrnoException;
    if (code !== undefined && ABSENT.has(code)) {
      throw new ConnectorError("AGENT_OFFLINE", `No agent runs in the state directory ${stateDir}.`, {
        fix: "Start one (sallyport-agent run), or name the configuration of the one you mean with --config FILE.",
        details: { absent: true },
        cause: error,
      });
    }
    if (code === "EACCES" || code === "EPERM") {
      throw new ConnectorError("FORBIDDEN", `The control socket in ${stateDir} is not yours to use.`, {
        fix: "Run this as the agent's user.",
        cause: error,
      });
    }
    throw new ConnectorError(
      "AGENT_OFFLINE",
      `The agent in ${stateDir} does not answer (${code ?? "unknown fault"}).`,
      { fix: "Look at its log.", cause: error },
    );
  } finally {
    address?.release();
  }
}
