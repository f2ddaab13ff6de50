// A NATS network in operator mode, made for a test: an operator, one account, users whose rights their JWTs have. The
// tokens are written here by hand, since no tool for them is wanted where only a test needs some.
import { randomBytes } from "node:crypto";
import { nkeys } from "@nats-io/transport-node";

type KeyPair = ReturnType<typeof nkeys.createUser>;

const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");

function token(by: KeyPair, subject: string, name: string, nats: object): string {
  const head = encode({ typ: "JWT", alg: "ed25519-nkey" });
  const body = encode({
    jti: randomBytes(16).toString("hex"),
    iat: Math.floor(Date.now() / 1000),
    iss: by.getPublicKey(),
    sub: subject,
    name,
    nats: { version: 2, ...nats },
  });
  const signed = `${head}.${body}`;
  return `${signed}.${Buffer.from(by.sign(Buffer.from(signed))).toString("base64url")}`;
}

const NO_LIMITS = { subs: -1, data: -1, payload: -1 };

/** `agentRights`: of the users that `agent` makes, with `{{name()}}` for the user's name: a scoped signing key. */
export function natsOperator(agentRights: { publish: string; subscribe: string }) {
  const [operator, account, agents] = [nkeys.createOperator(), nkeys.createAccount(), nkeys.createAccount()];
  const accountToken = token(operator, account.getPublicKey(), "sallyport", {
    type: "account",
    limits: { ...NO_LIMITS, conn: -1, leaf: -1, imports: -1, exports: -1, wildcards: true },
    default_permissions: { pub: {}, sub: {} },
    signing_keys: [
      {
        kind: "user_scope",
        key: agents.getPublicKey(),
        role: "agent",
        template: {
          pub: { allow: [agentRights.publish] },
          sub: { allow: [agentRights.subscribe] },
          ...NO_LIMITS,
        },
      },
    ],
  });
  const creds = (by: KeyPair, name: string, nats: object): string => {
    const user = nkeys.createUser();
    const jwt = token(by, user.getPublicKey(), name, { type: "user", ...nats });
    const block = (title: string, text: string) => `-----BEGIN ${title}-----\n${text}\n------END ${title}------\n\n`;
    return block("NATS USER JWT", jwt) + block("USER NKEY SEED", Buffer.from(user.getSeed()).toString());
  };
  return {
    /** Of the server's configuration. */
    config: `operator: "${token(operator, operator.getPublicKey(), "operator", { type: "operator" })}"
resolver: MEMORY
resolver_preload: { ${account.getPublicKey()}: "${accountToken}" }`,
    /** Credentials files. */
    user: (name: string, publish: string[], subscribe: string[]): string =>
      creds(account, name, { pub: { allow: publish }, sub: { allow: subscribe }, ...NO_LIMITS }),
    agent: (name: string): string => creds(agents, name, { issuer_account: account.getPublicKey() }),
  };
}
