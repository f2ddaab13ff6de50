import { ConnectorError, type ErrorCode } from "@sallyport/protocol";
import t from "tap";
import { Addresses } from "./addresses.ts";

const A = "https://a.example";
const B = "https://b.example";
const C = "https://c.example";

/** Answers as each address is told to, and notes the order. */
function world(answers: Record<string, ErrorCode | "up">) {
  const addresses = new Addresses([B, C, A]);
  const asked: string[] = [];
  const round = async (): Promise<string> =>
    addresses.tryEach(
      A,
      async (address) => {
        asked.push(address);
        const answer = answers[address]!;
        if (answer === "up") return address;
        throw new ConnectorError(answer, `${address} fails.`);
      },
      new AbortController().signal,
    );
  return { addresses, answers, round, asked: () => asked.splice(0) };
}

t.test("in turn, once each, beginning with the one that worked last", async (t) => {
  const { addresses, answers, round, asked } = world({ [A]: "CLOUD_UNREACHABLE", [B]: "up", [C]: "up" });
  t.equal(await round(), B);
  addresses.keep(B);
  t.same(asked(), [A, B]);
  answers[B] = "CLOUD_UNTRUSTED";
  t.equal(await round(), C, "from there on");
  addresses.keep(C);
  t.same(asked(), [B, C]);
  answers[C] = "CLOUD_UNTRUSTED";
  const failure: unknown = await round().catch((error: unknown) => error);
  t.match(failure, {
    reason: {
      code: "CLOUD_UNREACHABLE",
      message: /^https:\/\/a.* fails\. The other addresses: .*c.* fails\. .*b.* fails/,
    },
  });
  t.same(asked(), [C, A, B], "the most hopeful one speaks for all");
  answers[A] = "up";
  t.equal(await round(), A, "each round tries all of them");
});

t.test("one that can be dialled and no more does not keep the others from their turn", async (t) => {
  const { addresses, round, asked } = world({ [A]: "up", [B]: "CLOUD_UNREACHABLE", [C]: "up" });
  t.equal(await round(), A);
  t.equal(addresses.passOver(A, "HANDSHAKE_FAILED"), true);
  t.equal(await round(), C);
  t.equal(addresses.passOver(C, "CLOUD_UNTRUSTED"), false, "all were tried: wait");
  t.same(asked(), [A, B, C]);
  t.equal(await round(), A, "a new round");
  t.equal(addresses.passOver(A, "IDENTITY_REVOKED"), false, "that would be said anywhere");
});

t.test("a single address", async (t) => {
  const addresses = new Addresses([]);
  await addresses.tryEach(A, async () => A, new AbortController().signal);
  t.equal(addresses.passOver(A, "HANDSHAKE_FAILED"), false);
  const gone = () => Promise.reject(new ConnectorError("CLOUD_UNREACHABLE", "gone."));
  const failure: unknown = await addresses
    .tryEach(A, gone, new AbortController().signal)
    .catch((error: unknown) => error);
  t.match(failure, { reason: { message: "gone." } });
});
