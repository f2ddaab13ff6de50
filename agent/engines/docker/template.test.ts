// What the template lets differ, and nothing else: 1,000 specs with hostile text in every field.
import fc from "fast-check";
import t from "tap";
import { ConnectorError } from "@sallyport/protocol";
import type { ContainerSpec, WorkName, WorkSpec } from "../engine.ts";
import { containerBody, type ContainerAbout } from "./template.ts";

/** Every key of a body, with the keys in it; [] for what stands in a list. */
const GOLDEN = `
AttachStderr AttachStdin AttachStdout Cmd Cmd[] Entrypoint Entrypoint[] Env Env[] Healthcheck Healthcheck.Test
Healthcheck.Test[] HostConfig HostConfig.AutoRemove HostConfig.CapDrop HostConfig.CapDrop[] HostConfig.Dns HostConfig.Dns[]
HostConfig.Init HostConfig.IpcMode HostConfig.LogConfig HostConfig.LogConfig.Config HostConfig.LogConfig.Config.compress
HostConfig.LogConfig.Config.max-file HostConfig.LogConfig.Config.max-size HostConfig.LogConfig.Type HostConfig.Memory
HostConfig.MemorySwap HostConfig.Mounts HostConfig.Mounts[] HostConfig.Mounts[].Target HostConfig.Mounts[].Type
HostConfig.Mounts[].VolumeOptions HostConfig.Mounts[].VolumeOptions.Labels
HostConfig.Mounts[].VolumeOptions.Labels.sallyport.agent HostConfig.Mounts[].VolumeOptions.NoCopy HostConfig.NanoCpus
HostConfig.NetworkMode HostConfig.PidsLimit HostConfig.ReadonlyRootfs HostConfig.RestartPolicy HostConfig.RestartPolicy.Name
HostConfig.SecurityOpt HostConfig.SecurityOpt[] HostConfig.ShmSize HostConfig.Tmpfs HostConfig.Tmpfs./tmp HostConfig.Ulimits
HostConfig.Ulimits[] HostConfig.Ulimits[].Hard HostConfig.Ulimits[].Name HostConfig.Ulimits[].Soft Hostname Image Labels
Labels.sallyport.agent Labels.sallyport.pool Labels.sallyport.template Labels.sallyport.work OpenStdin StopSignal Tty User WorkingDir`
  .trim()
  .split(/\s+/)
  .sort();

/** Lists whose length differs: their members count as there. An agent that has not joined a pool names none. */
const OPTIONAL = ["Cmd[]", "Entrypoint[]", "Env[]", "HostConfig.Dns[]", "Labels.sallyport.pool"];

function keysOf(value: unknown, at = ""): string[] {
  if (Array.isArray(value)) return [...new Set(value.flatMap((item) => [`${at}[]`, ...keysOf(item, `${at}[]`)]))];
  if (value === null || typeof value !== "object") return [];
  return Object.entries(value).flatMap(([key, inner]) => {
    const path = at === "" ? key : `${at}.${key}`;
    return [path, ...keysOf(inner, path)];
  });
}

const hostile = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.constantFrom(
    "",
    "__proto__",
    "constructor",
    "../../etc/passwd",
    "/var/run/docker.sock:/var/run/docker.sock",
    "host",
    "container:abc",
    "--privileged",
    "seccomp=unconfined",
    '","Privileged":true,"x":"',
    "a\nb",
    "a\0b",
    "${HOME}",
    "0:0",
    "x".repeat(5000),
  ),
);
const names = fc.stringMatching(/^[a-z0-9]{1,20}$/);
const digest = fc.stringMatching(/^sha256:[0-9a-f]{64}$/);

const specs: fc.Arbitrary<WorkSpec & { container: ContainerSpec }> = fc.record({
  name: fc.oneof(
    { weight: 9, arbitrary: names },
    { weight: 1, arbitrary: hostile },
  ) as fc.Arbitrary<string> as unknown as fc.Arbitrary<WorkName>,
  executable: fc.oneof(
    fc.constantFrom("", "/bin/sh"),
    hostile.map((text) => `/${text}`),
  ),
  args: fc.array(hostile, { maxLength: 5 }),
  env: fc.dictionary(fc.oneof(names, hostile), hostile, { maxKeys: 5 }),
  cwd: hostile,
  stdout: hostile,
  stderr: hostile,
  container: fc.record({
    image: fc.oneof(digest, hostile),
    resources: fc.record({
      cpus: fc.double({ min: 0.1, max: 1024, noNaN: true }),
      memoryBytes: fc.integer({ min: 32 << 20, max: 2 ** 40 }),
    }),
    network: fc.oneof(
      fc.constant({ kind: "none" as const }),
      fc.record({ kind: fc.constant("serving" as const), port: fc.integer() }),
      fc.record({ kind: fc.constant("named" as const), name: hostile }),
    ),
  }),
});
const abouts: fc.Arbitrary<ContainerAbout> = fc.record({
  agentId: names,
  pool: fc.option(names),
  imageId: digest,
  network: fc.oneof(
    fc.constant({ kind: "none" as const }),
    fc.record({ kind: fc.constantFrom("serving" as const, "named" as const), id: fc.stringMatching(/^[0-9a-f]{64}$/) }),
  ),
  user: fc.constant({ uid: 65_532, gid: 65_532 }),
});

const FIXED = JSON.stringify({
  rest: {
    WorkingDir: "/sallyport/work",
    User: "65532:65532",
    Hostname: "work",
    AttachStdin: false,
    AttachStdout: false,
    AttachStderr: false,
    OpenStdin: false,
    Tty: false,
    StopSignal: "SIGTERM",
    Healthcheck: { Test: ["NONE"] },
  },
  host: {
    AutoRemove: false,
    CapDrop: ["ALL"],
    Init: true,
    IpcMode: "private",
    LogConfig: { Type: "local", Config: { "max-size": "20m", "max-file": "5", compress: "false" } },
    PidsLimit: 1024,
    ReadonlyRootfs: true,
    RestartPolicy: { Name: "no" },
    SecurityOpt: ["no-new-privileges:true"],
    ShmSize: 67_108_864,
    Tmpfs: { "/tmp": "rw,nosuid,nodev,noexec,size=67108864,mode=1777" },
    Ulimits: [
      { Name: "core", Soft: 0, Hard: 0 },
      { Name: "nofile", Soft: 8192, Hard: 8192 },
    ],
  },
});

await t.test("the keys of 1,000 generated bodies are the golden ones, and what is fixed stays", async (t) => {
  let made = 0;
  let refused = 0;
  while (made < 1000) {
    fc.assert(
      fc.property(specs, abouts, (spec, about) => {
        let body;
        try {
          body = containerBody(spec, about);
        } catch (error) {
          if (!(error instanceof ConnectorError) || error.code !== "ENGINE_FAILED") throw error;
          refused++;
          return;
        }
        made++;
        const keys = [...new Set([...keysOf(body), ...OPTIONAL])].sort();
        if (JSON.stringify(keys) !== JSON.stringify(GOLDEN))
          throw new Error(
            `keys: ${keys.filter((k) => !GOLDEN.includes(k)).join()} more, ${GOLDEN.filter((k) => !keys.includes(k)).join()} less`,
          );
        const { Cmd, Env, Entrypoint, Image, Labels, HostConfig, ...rest } = body;
        const { Memory, MemorySwap, NanoCpus, NetworkMode, Dns, Mounts, ...host } = HostConfig!;
        const fixed = JSON.stringify({ rest, host });
        if (fixed !== FIXED) throw new Error(`fixed values differ: ${fixed}`);
        const must: [string, boolean][] = [
          ["arguments are the spec's", JSON.stringify(Cmd) === JSON.stringify(spec.args)],
          ["variables are the spec's", Env!.length === Object.keys(spec.env).length],
          [
            "executable",
            JSON.stringify(Entrypoint) === JSON.stringify(spec.executable === "" ? null : [spec.executable]),
          ],
          ["image by its id", Image === about.imageId],
          [
            "labels",
            JSON.stringify(Object.values(Labels!)) ===
              JSON.stringify([about.agentId, spec.name, "1", ...(about.pool === null ? [] : [about.pool])]),
          ],
          ["no swap", Memory === MemorySwap && Memory === spec.container.resources.memoryBytes],
          ["cpus", Number.isInteger(NanoCpus) && Math.abs(NanoCpus! / 1e9 - spec.container.resources.cpus) <= 0.005],
          ["network", NetworkMode === (about.network.kind === "none" ? "none" : about.network.id)],
          ["resolver", JSON.stringify(Dns) === (about.network.kind === "named" ? "[]" : '["127.0.0.1"]')],
          [
            "one volume without a name",
            JSON.stringify(Mounts) ===
              JSON.stringify([
                {
                  Type: "volume",
                  Target: "/sallyport",
                  VolumeOptions: { NoCopy: true, Labels: { "sallyport.agent": about.agentId } },
                },
              ]),
          ],
        ];
        for (const [what, holds] of must) if (!holds) throw new Error(what);
      }),
      { numRuns: 1000 },
    );
  }
  t.ok(made >= 1000 && refused > 0, `${made} made, ${refused} refused`);
});
