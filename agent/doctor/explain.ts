// From what a dial found to what a person needs to know: looks again, closer, at the hop that failed.
import type { Clock } from "@sallyport/protocol";
import {
  linkUrl,
  shownChain,
  type DialTarget,
  type Finding,
  type Hop,
  type HopDetails,
  type LinkFailure,
} from "../link/index.ts";
import type { Known } from "./known.ts";
import { getPlainly, isOurs, issuerOf, nameOf, titleOf, type HttpAnswer } from "./look.ts";
import type { DoctorFinding } from "./report.ts";
import { SKEW_FAIL_MS, skewSentence } from "./skew.ts";

export interface Explained {
  /** The one to blame: a wrong clock shows itself at another hop. */
  readonly hop: Hop;
  readonly finding: DoctorFinding;
  readonly text: string;
  readonly fix: string;
}

/** Null: the dial said all there is to say. */
export async function explain(
  { reason }: LinkFailure,
  hop: Hop,
  target: DialTarget,
  known: Known,
  clock: Clock,
): Promise<Explained | null> {
  const { finding } = (reason.details ?? {}) as Partial<HopDetails>;
  if (hop === "handshake") {
    return reason.code === "CLOUD_UNTRUSTED"
      ? {
          hop,
          finding: "identity-key",
          text: `A control plane answers, but it is not the one of ${known.pinsFrom}: it did not prove that identity key.`,
          fix: "Check the address; something may answer in its place. If the control plane has a new identity key, enrol the agent again.",
        }
      : {
          hop,
          finding: "refused-handshake",
          text: reason.message,
          fix: reason.fix ?? "Look at the control plane's log.",
        };
  }
  if (hop === "tls" && finding !== undefined) return await explainTls(finding, target, known, clock);
  if (hop === "upgrade" && finding !== undefined) return await explainAnswer(finding, target);
  return null;
}

async function explainTls(finding: Finding, target: DialTarget, known: Known, clock: Clock): Promise<Explained | null> {
  const { host } = linkUrl(target.cloudUrl).url;
  if (finding === "not-tls" || finding === "reset") {
    const answer = await getPlainly(target, "/healthz", "plain");
    return answer === null
      ? null
      : {
          hop: "tls",
          finding: "plain-http",
          text: `${host} speaks plain HTTP, not TLS${isOurs(answer) ? "; a control plane answers there" : ""}.`,
          fix: "Use the port for https (often 443), or put a TLS terminator before the control plane; plain http:// is for loopback alone.",
        };
  }
  const chain = await shownChain(target).catch(() => []);
  const leaf = chain[0];
  if (leaf === undefined) return null;
  if (finding === "certificate-untrusted") {
    const issuer = issuerOf(chain);
    return {
      hop: "tls",
      finding,
      text: `${host} shows a certificate of ${nameOf(leaf.subject)}, signed by “${issuer}”, which this agent does not trust: it trusts ${known.caFrom}.`,
      fix: `If “${issuer}” is your company's TLS-inspecting proxy (or the control plane's own CA), set cloud.ca in the agent's configuration to its PEM file. If nobody knows it, something answers in the control plane's place.`,
    };
  }
  if (finding === "certificate-name")
    return {
      hop: "tls",
      finding,
      text: `${host} shows a certificate for ${leaf.subjectaltname ?? nameOf(leaf.subject)}, which is not this name.`,
      fix: "Use a name that the certificate is for as the control plane's address, or check where this name leads.",
    };
  if (finding !== "certificate-expired" && finding !== "certificate-early") return null;
  const answer = await getPlainly(target, "/healthz", "unverified");
  const there = Date.parse(answer?.headers["date"] ?? "");
  const aheadMs = there - clock.now();
  if (Number.isFinite(there) && Math.abs(aheadMs) > SKEW_FAIL_MS)
    return {
      hop: "clock",
      finding: "clock-off",
      text: `${skewSentence(aheadMs, `that of ${host}`)}; so its certificate (${leaf.valid_from} to ${leaf.valid_to}) does not count.`,
      fix: "Let a time service set the clock of this machine.",
    };
  return {
    hop: "tls",
    finding,
    text: `The certificate of ${host} is valid from ${leaf.valid_from} to ${leaf.valid_to}, and it is ${new Date(clock.now()).toUTCString()}.`,
    fix: `Whoever runs ${host} must renew it; nothing is wrong at this machine.`,
  };
}

/** What answered was HTTP, but no WebSocket. */
async function explainAnswer(finding: Finding, target: DialTarget): Promise<Explained | null> {
  const { host } = linkUrl(target.cloudUrl).url;
  if (!["redirect", "page", "not-found", "credentials", "status", "upgrade-stripped"].includes(finding)) return null;
  const answer = await getPlainly(target, "/link", "verified");
  if (answer === null) return null;
  // nginx tells it by a page: its TLS lets everybody in, and judges afterwards.
  const title = titleOf(answer.body) ?? "";
  if (answer.status === 495 || answer.status === 496 || /^400 .*SSL certificate/i.test(title))
    return {
      hop: "tls",
      finding: "client-certificate",
      text: `${host} wants a client certificate that it accepts (${title === "" ? answer.status : title}).`,
      fix: "Set link.clientCertificate in the agent's configuration to the certificate and key that were issued for this agent.",
    };
  const captive = captivePage(answer, host);
  if (captive !== null) return captive;
  if (finding === "upgrade-stripped" || isOurs(answer) || isOurs(await getPlainly(target, "/healthz", "verified")))
    return {
      hop: "upgrade",
      finding: "upgrade-stripped",
      text: `A control plane answers at ${host}, but the WebSocket's Upgrade header does not reach it (${answer.status}).`,
      fix: "Something on the way removes it. A TLS-inspecting proxy: exempt this host, or let WebSockets pass. nginx: proxy_http_version 1.1 and the headers Upgrade and Connection (docs/operations/network.md).",
    };
  return null;
}

function captivePage({ status, headers, body }: HttpAnswer, host: string): Explained | null {
  const location = URL.parse(headers["location"] ?? "", `https://${host}`);
  const title = titleOf(body);
  const page = title === null ? "" : ` with the title “${title}”`;
  if (status >= 300 && status < 400 && location !== null) {
    // Where it leads, without what its query may carry.
    const to = `${location.origin}${location.pathname}`;
    // What moved keeps its path.
    return location.pathname.endsWith("/link")
      ? {
          hop: "upgrade",
          finding: "redirect",
          text: `${host} answered with a redirect (${status}) to ${to}, which the link does not follow.`,
          fix: `Set the control plane's address to ${location.origin}${location.pathname.replace(/\/link$/, "")}.`,
        }
      : {
          hop: "upgrade",
          finding: "captive-page",
          text: `${host} answered with a redirect (${status}) to ${to}: the page of a sign-in, not a control plane.`,
          fix: "Ask for a rule that lets this machine out without a sign-in, or check the control plane's address.",
        };
  }
  if (status === 511 || /<form\b|type=["']?password|http-equiv=["']?refresh/i.test(body))
    return {
      hop: "upgrade",
      finding: "captive-page",
      text: `${host} answered with a page to sign in at (${status})${page}, not as a control plane.`,
      fix: "Ask for a rule that lets this machine out without a sign-in, or check the control plane's address.",
    };
  if (status >= 200 && status < 300 && !isOurs({ status, headers, body }))
    return {
      hop: "upgrade",
      finding: "page",
      text: `${host} answered with ${/html/.test(headers["content-type"] ?? "") ? "an HTML page" : "something else"} (${status})${page} where a WebSocket was asked for.`,
      fix: "Check the control plane's address; another server, or a block page of a proxy, answers there.",
    };
  return null;
}
