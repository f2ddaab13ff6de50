// The agent's file as it may be written: every field, its unit, its default. Strict: an unknown field is refused. The
// JSON Schema for editors is made from this, so descriptions here are what people read.
import { imageRefSchema, nameSchema } from "@sallyport/protocol";
import { z } from "zod";
import { policySchema } from "../policy/index.ts";
import { looksLikeReference, parseReferences } from "../secrets/reference.ts";

/** Text that may hold references to secrets. Shown as stars. */
export const SECRET_META = { secret: true } as const;
const secretText = z
  .string()
  .min(1)
  .superRefine((text, context) => {
    const parsed = parseReferences(text);
    if ("problem" in parsed) context.addIssue({ code: "custom", message: `text that ${parsed.problem}` });
  })
  .meta(SECRET_META);
/** Text in which a reference would be a mistake: nothing would resolve it. */
const plainText = z
  .string()
  .min(1)
  .refine((text) => !looksLikeReference(text), "plain text: this field takes no secret reference");
const absolutePath = plainText.refine(
  (path) => path.startsWith("/") || /^[A-Za-z]:[\\/]/.test(path),
  "an absolute path",
);
const httpUrl = plainText.superRefine((text, context) => {
  const problem = urlProblem(text, ["http:", "https:"]);
  if (problem !== null) context.addIssue({ code: "custom", message: problem });
});

/** Null when the text is an address without user, query or fragment; otherwise what is expected. */
function urlProblem(text: string, protocols: string[]): string | null {
  const url = URL.parse(text);
  if (url === null || !protocols.includes(url.protocol) || url.hostname === "")
    return `an address that begins with ${protocols.map((p) => `${p}//`).join(" or ")}`;
  if (url.username !== "" || url.password !== "")
    return "an address without user and password; credentials have their own fields";
  if (url.search !== "" || url.hash !== "") return "an address without query and fragment";
  return null;
}

const fsStore = z.strictObject({
  id: nameSchema,
  kind: z.literal("fs"),
  root: absolutePath.describe("Folder that is the store. Nothing outside is ever reached, also not by a link."),
});
const s3Store = z.strictObject({
  id: nameSchema,
  kind: z.literal("s3"),
  endpoint: httpUrl.describe("The credentials below go here and nowhere else."),
  region: plainText.optional().describe("Default us-east-1."),
  bucket: plainText.refine(
    (b) => /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(b),
    "a bucket name: 3 to 63 of a-z, 0-9, '.' and '-'",
  ),
  prefix: plainText
    .refine(
      (p) =>
        p.endsWith("/") &&
        p
          .split("/")
          .slice(0, -1)
          .every((s) => s !== "" && s !== "." && s !== ".."),
      "a prefix such as team/data/, ending with a slash, without empty or dot segments",
    )
    .optional()
    .describe("The part of the bucket that is the store. Default: all of it."),
  pathStyle: z.boolean().optional().describe("endpoint/bucket/key instead of bucket.endpoint/key. Default true."),
  ca: absolutePath
    .optional()
    .describe("PEM file of the CA that signed the endpoint's certificate. Default: the well-known ones."),
  accessKeyId: secretText,
  secretAccessKey: secretText,
  sessionToken: secretText.optional(),
});

const plainEnv = z.record(
  z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "a variable name"),
  z.string().refine((v) => !looksLikeReference(v), "plain text: secrets are given through secrets.named"),
);
const hostAndPort = plainText.refine((text) => {
  const url = URL.parse(`tcp://${text}`);
  return url !== null && url.hostname !== "" && /^[^/@?#]+:[0-9]{1,5}$/.test(text);
}, "an address and port such as 127.0.0.1:8470 or 0.0.0.0:8470");

export const configSchema = z.strictObject({
  cloud: z
    .strictObject({
      url: httpUrl
        .optional()
        .describe("The control plane. SALLYPORT_URL overrides it. Default: what the enrolment secret says."),
      ca: absolutePath
        .optional()
        .describe(
          "PEM file of the CA that signed its certificate; takes the place of the CA's fingerprint in the enrolment secret.",
        ),
    })
    .optional(),
  link: z
    .strictObject({
      url: plainText
        .superRefine((text, context) => {
          const problem = urlProblem(text, ["tls:", "wss+nats:", "nats:"]);
          if (problem !== null) context.addIssue({ code: "custom", message: problem });
        })
        .optional()
        .describe(
          "A NATS network that carries the link: tls://host:port, wss+nats://host:port (its servers' WebSocket listener), or on this machine nats://host:port. Default: a WebSocket to cloud.url.",
        ),
      nats: z
        .strictObject({
          name: z
            .string()
            .regex(/^[A-Za-z0-9_-]{1,64}$/, "1 to 64 letters, digits, '-' and '_'")
            .optional()
            .describe(
              "This agent's part of the subjects, as its NATS user's permissions have it. Default: that user's name.",
            ),
          prefix: z
            .string()
            .regex(/^[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,7}$/, "parts of a subject: letters, digits, '-' and '_'")
            .optional()
            .describe("First part of all subjects, the same at the control plane. Default sallyport."),
          ca: absolutePath
            .optional()
            .describe(
              "PEM file of the CA that signed the NATS server's certificate. Default: this machine's own list.",
            ),
          user: plainText.optional().describe("With password."),
          password: secretText.optional().describe("By ${file:...} or ${env:...}."),
          token: secretText.optional().describe("In place of user and password."),
          nkey: secretText.optional().describe("Seed of the user's nkey, in place of user and password."),
          creds: secretText
            .optional()
            .describe(
              "Text of a NATS credentials file, such as ${file:/run/secrets/agent.creds}, in place of user and password.",
            ),
        })
        .optional()
        .describe("Who the agent is in the NATS network. Only with link.url."),
      addresses: z
        .array(httpUrl)
        .optional()
        .describe("More addresses of the same control plane, tried in turn when cloud.url does not answer."),
      proxy: z
        .strictObject({
          url: httpUrl.describe("http://host:port or https://host:port of a proxy that does CONNECT."),
          user: plainText
            .refine((user) => !user.includes(":"), "a user's name without a colon")
            .optional()
            .describe("For Basic authentication. Absent = without."),
          password: secretText.optional().describe("By ${file:...} or ${env:...}."),
          ca: absolutePath
            .optional()
            .describe(
              "PEM file of the CA that signed an https:// proxy's certificate. Default: this machine's own list.",
            ),
        })
        .optional()
        .describe("The way out. Takes the place of HTTPS_PROXY. Default: HTTPS_PROXY, else straight."),
      noProxy: z
        .array(plainText)
        .optional()
        .describe(
          "Reached without a proxy: *, names (with all below them), addresses, networks such as 10.0.0.0/8, each with or without :port. Takes the place of NO_PROXY.",
        ),
      clientCertificate: z
        .strictObject({ cert: absolutePath, key: absolutePath })
        .optional()
        .describe("PEM files, shown to a gateway in front of the control plane that asks for one. Read at each dial."),
      deadAfterMs: z
        .int()
        .min(500)
        .max(600_000)
        .optional()
        .describe("Silence after which the link counts as dead and is dialled anew; beats keep pace. Default 12000."),
      stableAfterMs: z
        .int()
        .min(0)
        .optional()
        .describe("A link that was up for so long is dialled anew at once when it breaks. Default 60000."),
      keyDays: z
        .int()
        .min(0)
        .max(3650)
        .optional()
        .describe("A key of that age is changed for a new one, over the link. 0 = only when asked. Default 90."),
    })
    .optional()
    .describe("The network between the agent and its control plane."),
  state: absolutePath
    .optional()
    .describe(
      "Folder for the agent's key, journal, audit and logs. SALLYPORT_STATE overrides it. Default /var/lib/sallyport.",
    ),
  labels: z.record(nameSchema, plainText.max(256)).optional().describe("Shown beside the agent."),
  log: z
    .strictObject({
      level: z
        .enum(["trace", "debug", "info", "warn", "error", "fatal"])
        .optional()
        .describe("SALLYPORT_LOG_LEVEL overrides it. Default info."),
    })
    .optional(),
  secrets: z
    .strictObject({
      vault: z
        .strictObject({
          address: httpUrl.describe("The token goes here and nowhere else; redirects are not followed."),
          token: secretText.describe("By ${file:...} or ${env:...}."),
          ca: absolutePath
            .optional()
            .describe("PEM file of the CA that signed its certificate. Default: the well-known ones."),
        })
        .optional()
        .describe("HashiCorp Vault with KV version 2: what ${vault:mount/path#field} refers to."),
      named: z
        .record(z.string().min(1).max(256), secretText)
        .optional()
        .describe("What steps may be given, by the name that a pipeline uses. The policy says which."),
    })
    .optional(),
  stores: z
    .array(z.discriminatedUnion("kind", [fsStore, s3Store]))
    .optional()
    .describe("Where artifacts lie."),
  programs: z
    .record(
      nameSchema,
      z.strictObject({
        path: absolutePath.describe("The executable; with `image`, as the image has it."),
        image: imageRefSchema
          .optional()
          .describe("For engine docker: the image by digest that holds it. Absent = a program of this machine."),
        args: z.array(z.string()).optional().describe("Come before the arguments of the step."),
        env: z
          .record(
            z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "a variable name"),
            z
              .string()
              .refine((v) => !looksLikeReference(v), "plain text: give a step its secrets through secrets.named"),
          )
          .optional()
          .describe("Set for every step that starts it. Not for secrets."),
      }),
    )
    .optional()
    .describe("What steps may start, by name. The control plane never sends a path."),
  engines: z
    .strictObject({
      docker: z
        .strictObject({
          socket: absolutePath
            .optional()
            .describe("The Engine's socket: who can use it is root on its machine. Default /var/run/docker.sock."),
        })
        .optional()
        .describe("Docker Engine, for steps and replicas in containers. Absent = not used."),
    })
    .optional()
    .describe("What runs work beside the built-in engine process."),
  serving: z
    .strictObject({
      listen: hostAndPort
        .optional()
        .describe("Where the endpoints of deployments answer. Default 127.0.0.1:8470, this machine alone."),
      advertise: httpUrl.optional().describe("The same as clients in the network reach it. Default: made from listen."),
      tls: z
        .strictObject({ cert: absolutePath, key: absolutePath })
        .optional()
        .describe("PEM files, for https. Default: http."),
      process: z
        .strictObject({
          path: absolutePath.describe("The program that serves one model."),
          args: z.array(z.string()).optional(),
          env: plainEnv.optional(),
        })
        .optional()
        .describe("What engine process starts for a replica. Absent = it serves nothing."),
      image: imageRefSchema
        .optional()
        .describe("What engine docker starts for a replica, by digest. Absent = it serves nothing."),
    })
    .optional()
    .describe("Models behind endpoints in this network."),
  limits: z
    .strictObject({
      replicas: z
        .int()
        .positive()
        .optional()
        .describe("Replicas at a time, over all deployments; more wait. Default 16."),
      servingCpus: z
        .number()
        .positive()
        .optional()
        .describe("Cores of all replicas together; more wait. Default: those of this machine."),
      servingMemoryBytes: z
        .int()
        .positive()
        .optional()
        .describe("Memory of all replicas together; more wait. Default: three quarters of this machine's."),
      modelBytes: z
        .int()
        .min(1_048_576)
        .optional()
        .describe("Models kept on this machine; those that nothing serves go first. Default 20 GiB."),
      concurrentRuns: z.int().positive().optional().describe("Pipeline runs at a time; more wait. Default 4."),
      concurrentSteps: z.int().positive().optional().describe("Steps at a time, over all runs; more wait. Default 4."),
      logBytesPerAttempt: z
        .int()
        .min(65_536)
        .optional()
        .describe("What one attempt of a step may log; the rest becomes a gap. Default 64 MiB."),
      logBytes: z.int().min(1_048_576).optional().describe("All logs together; the oldest go first. Default 2 GiB."),
      workBytes: z
        .int()
        .min(1_048_576)
        .optional()
        .describe("All work folders together; ended runs are collected first. Default 20 GiB."),
      auditBytes: z
        .int()
        .min(1_048_576)
        .optional()
        .describe("The audit log; the oldest segments go first. Default 1 GiB."),
    })
    .optional()
    .describe("What the agent takes for itself on this machine."),
  metrics: z
    .strictObject({
      listen: hostAndPort.describe("Where /metrics, /healthz and /readyz answer, e.g. 127.0.0.1:9464."),
      token: secretText.describe("What a scraper shows as `Authorization: Bearer`. By ${file:...} or ${env:...}."),
    })
    .optional()
    .describe("Figures for Prometheus at an address. Absent = on the control socket alone, for the agent's own user."),
  policy: policySchema.optional().describe("What the control plane may ask for. What is not written is not allowed."),
});

/** As written: nothing filled in. */
export type RawConfig = z.input<typeof configSchema>;
export type FsStoreConfig = z.infer<typeof fsStore>;

/** For editors: `# yaml-language-server: $schema=...` at the top of the file. */
export const configJsonSchema = (): unknown => z.toJSONSchema(configSchema, { io: "input", unrepresentable: "any" });
