// Several processes of one control plane: who they are, which of them holds which agent's session, and the links by
// which a stream gets from the process that has the request to the one that has the agent. It knows no command, no route
// and no page. Only the wiring makes it; what it gives are the same ports that one process alone has.
export { Membership, type MembershipOptions, type PeerView } from "./membership.ts";
export { dialPeerOverNats, peerHello, peerPrefix } from "./peer-nats.ts";
export { PeerServer, type PeerServerOptions } from "./peer-server.ts";
export { changeFeed, type ChangeFeed } from "./change-feed.ts";
