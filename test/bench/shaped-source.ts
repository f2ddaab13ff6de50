// Sends zeros over raw TCP to a port of 127.0.0.1 for as long as it is let.
import { connect } from "node:net";

const socket = connect({ port: Number(process.argv[2]), host: "127.0.0.1" });
const chunk = Buffer.alloc(64 * 1024);
const send = (): void => {
  while (socket.write(chunk));
};
socket.on("drain", send).on("error", () => process.exit(0));
socket.once("connect", send);
process.on("disconnect", () => process.exit(0));
