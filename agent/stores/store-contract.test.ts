// What every kind of store must do, asked of each with the same questions.
import { createHash } from "node:crypto";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { systemClock, treeDigest } from "@sallyport/protocol";
import { ListMultipartUploadsCommand } from "@aws-sdk/client-s3";
import t, { type Test } from "tap";
import { waitFor } from "../../test/support/launcher.ts";
import { startS3, type S3Server } from "../../test/support/servers.ts";
import { needs } from "../../test/support/skip.ts";
import type { StoreConfig } from "../config/index.ts";
import { createRedactor } from "../redaction/index.ts";
import { openSecrets } from "../secrets/index.ts";
import { manifestOf, openStores, type ArtifactStore } from "./index.ts";

const MIB = 1024 * 1024;
const sha = (bytes: Uint8Array) => `sha256:${createHash("sha256").update(bytes).digest("hex")}` as const;

async function* once(...chunks: (string | Uint8Array)[]): AsyncGenerator<Buffer> {
  for (const chunk of chunks) yield Buffer.from(chunk as string);
}
async function whole(bytes: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of bytes) chunks.push(Uint8Array.from(chunk));
  return Buffer.concat(chunks);
}
function open(t: Test, config: StoreConfig, environment: Record<string, string> = {}) {
  const secrets = openSecrets({ vault: null, named: {}, environment, redactor: createRedactor(), clock: systemClock });
  const stores = openStores([config], secrets, systemClock);
  t.teardown(async () => {
    await stores.close();
    secrets.close();
  });
  return stores;
}
const tempDir = (t: Test) => {
  const dir = mkdtempSync(join(tmpdir(), "sallyport-store-"));
  t.teardown(() => rmSync(dir, { recursive: true }));
  return dir;
};

async function contract(t: Test, store: ArtifactStore, left: () => Promise<string[]>) {
  const big = Buffer.alloc(
    20 * MIB + 12345,
    (() => {
      let n = 0;
      return Buffer.from(Array.from({ length: 1021 }, () => (n = (n * 167 + 13) & 255)));
    })(),
  );

  await t.test("write, then read it back, whole and in parts", async (t) => {
    const written = await store.write("a/b/hello.txt", once("hello ", "world"), {
      sizeBytes: 11,
      digest: sha(Buffer.from("hello world")),
    });
    t.equal(written.sizeBytes, 11);
    t.equal(written.digest, sha(Buffer.from("hello world")));
    const stat = await store.stat("a/b/hello.txt");
    t.match(stat, {
      name: "hello.txt",
      path: "a/b/hello.txt",
      kind: "file",
      sizeBytes: 11,
      version: written.version,
      mediaType: "text/plain",
    });
    const cases = [
      [{}, "hello world", 0],
      [{ range: { start: 6 } }, "world", 6],
      [{ range: { start: 0, end: 4 } }, "hello", 0],
      [{ range: { start: 4, end: 1000 } }, "o world", 4],
      [{ range: { start: 11 } }, "", 11],
      [{ suffixBytes: 3 }, "rld", 8],
      [{ suffixBytes: 300 }, "hello world", 0],
      [{ ifMatch: written.version, range: { start: 0, end: 0 } }, "h", 0],
    ] as const;
    for (const [options, expected, start] of cases) {
      const opened = await store.read("a/b/hello.txt", options);
      t.equal((await whole(opened.bytes)).toString(), expected, JSON.stringify(options));
      t.match(opened, { start, lengthBytes: expected.length, totalBytes: 11, version: written.version });
    }
    await t.rejects(store.read("a/b/hello.txt", { range: { start: 12 } }), { code: "RANGE_INVALID" });
    await t.rejects(store.read("a/b/hello.txt", { range: { start: 5, end: 4 } }), { code: "RANGE_INVALID" });
    await t.rejects(store.read("a/b/hello.txt", { ifMatch: "other" }), { code: "PRECONDITION_FAILED" });
  });

  await t.test("an empty file", async (t) => {
    await store.write("a/empty", once());
    const opened = await store.read("a/empty");
    t.equal((await whole(opened.bytes)).length, 0);
    t.equal((await store.stat("a/empty")).sizeBytes, 0);
    t.equal((await whole((await store.read("a/empty", { suffixBytes: 4 })).bytes)).length, 0);
  });

  await t.test("large, of unknown size, in odd chunks", async (t) => {
    async function* chunks() {
      const buffer = Buffer.alloc(65_537);
      for (let at = 0; at < big.length; at += buffer.length) {
        // One buffer over and over: the store must not keep it.
        const n = big.copy(buffer, 0, at, Math.min(big.length, at + buffer.length));
        yield buffer.subarray(0, n);
      }
    }
    const written = await store.write("big.bin", chunks());
    t.equal(written.digest, sha(big));
    t.equal(written.sizeBytes, big.length);
    const opened = await store.read("big.bin", { range: { start: 5 * MIB, end: 19 * MIB } });
    t.ok((await whole(opened.bytes)).equals(big.subarray(5 * MIB, 19 * MIB + 1)));
    const closed = await store.read("big.bin");
    for await (const chunk of closed.bytes) {
      t.ok(chunk.length <= 256 * 1024);
      break;
    }
  });

  await t.test("what does not have the stated digest or size never appears, and leaves nothing", async (t) => {
    await store.write("keep.txt", once("old"));
    const wrong = sha(Buffer.from("something else"));
    for (const body of [Buffer.from("new"), big]) {
      await t.rejects(store.write("keep.txt", once(body), { digest: wrong }), { code: "DIGEST_MISMATCH" });
      await t.rejects(store.write("keep.txt", once(body), { sizeBytes: body.length + 1 }), { code: "INPUT_INVALID" });
      await t.rejects(store.write("keep.txt", once(body), { sizeBytes: body.length - 1 }), { code: "INPUT_INVALID" });
      await t.rejects(
        store.write(
          "keep.txt",
          (async function* () {
            yield body;
            throw new Error("the sender is gone");
          })(),
        ),
        /the sender is gone/,
      );
    }
    t.equal((await whole((await store.read("keep.txt")).bytes)).toString(), "old");
    t.strictSame(await left(), []);
  });

  await t.test("conditions", async (t) => {
    const first = await store.write("cond.txt", once("1"), { ifNoneMatch: "*" });
    await t.rejects(store.write("cond.txt", once("2"), { ifNoneMatch: "*" }), { code: "ARTIFACT_EXISTS" });
    await t.rejects(store.write("cond.txt", once("2"), { ifMatch: "nonsense" }), { code: "PRECONDITION_FAILED" });
    await t.rejects(store.write("none.txt", once("2"), { ifMatch: first.version }), { code: "PRECONDITION_FAILED" });
    const second = await store.write("cond.txt", once("22"), { ifMatch: first.version });
    await t.rejects(store.write("cond.txt", once("3"), { ifMatch: first.version }), { code: "PRECONDITION_FAILED" });
    await t.rejects(store.delete("cond.txt", { ifMatch: first.version }), { code: "PRECONDITION_FAILED" });
    await store.delete("cond.txt", { ifMatch: second.version });
    await t.rejects(store.stat("cond.txt"), { code: "ARTIFACT_NOT_FOUND" });
    await t.rejects(store.delete("cond.txt"), { code: "ARTIFACT_NOT_FOUND" });
    const race = await Promise.allSettled(
      Array.from({ length: 8 }, (_, i) => store.write("race.txt", once(String(i)), { ifNoneMatch: "*" })),
    );
    t.equal(race.filter((r) => r.status === "fulfilled").length, 1, "a race has one winner");
    t.equal(race.filter((r) => r.status === "rejected" && r.reason.code === "ARTIFACT_EXISTS").length, 7);
    const replace = await store.stat("race.txt");
    const race2 = await Promise.allSettled(
      Array.from({ length: 8 }, (_, i) => store.write("race.txt", once(`again ${i}`), { ifMatch: replace.version! })),
    );
    t.equal(race2.filter((r) => r.status === "fulfilled").length, 1, "also when it replaces");
  });

  await t.test("folders", async (t) => {
    for (let i = 0; i < 25; i++) await store.write(`many/f${String(i).padStart(2, "0")}.csv`, once(`${i}`));
    await store.write("many/sub/x.json", once("{}"));
    const names: string[] = [];
    let cursor: string | undefined;
    let pages = 0;
    do {
      const page = await store.list("many", { limit: 7, ...(cursor === undefined ? {} : { cursor }) });
      t.ok(page.entries.length <= 7);
      names.push(...page.entries.map((e) => (e.kind === "tree" ? `${e.name}/` : e.name)));
      cursor = page.nextCursor ?? undefined;
      pages++;
    } while (cursor !== undefined);
    t.equal(pages, 4);
    t.strictSame(names, [...Array.from({ length: 25 }, (_, i) => `f${String(i).padStart(2, "0")}.csv`), "sub/"]);
    t.match(await store.stat("many"), { kind: "tree", name: "many", sizeBytes: null, version: null });
    t.ok((await store.list("", { limit: 100 })).entries.some((e) => e.name === "many" && e.kind === "tree"));
    await t.rejects(store.read("many"), { code: "NOT_A_FILE" });
    await t.rejects(store.delete("many"), { code: "NOT_A_FILE" });
    await t.rejects(store.list("many/f00.csv", { limit: 5 }), { code: "NOT_A_FILE" });
    await t.rejects(store.list("nowhere", { limit: 5 }), { code: "ARTIFACT_NOT_FOUND" });
    await t.rejects(store.read("nowhere/x"), { code: "ARTIFACT_NOT_FOUND", message: /"nowhere\/x" in store/ });
    // What a bucket makes of a foreign cursor is its own affair; ours is refused.
    if (store.kind === "fs") await t.rejects(store.list("many", { limit: 5, cursor: "!!" }), { code: "INPUT_INVALID" });
    const manifest = await manifestOf(store, "many");
    t.equal(manifest.entries.length, 26);
    t.match(
      manifest.entries.find((e) => e.path === "sub/x.json"),
      { digest: sha(Buffer.from("{}")), sizeBytes: 2 },
    );
    t.match(treeDigest(manifest.entries), /^sha256:/);
  });

  await t.test("names with every odd character that is allowed", async (t) => {
    for (const name of [
      "with space.txt",
      "ünï/çødé.txt",
      "plus+&=?#%.txt",
      "'quotes\"`.txt",
      "日本/語.csv",
      "100%.txt",
      "..a",
      "a..",
      "-rf",
    ]) {
      await store.write(`odd/${name}`, once(name));
      t.equal((await whole((await store.read(`odd/${name}`)).bytes)).toString(), name);
      t.equal((await store.stat(`odd/${name}`)).path, `odd/${name}`);
      await store.delete(`odd/${name}`);
    }
  });

  await t.test("cancelled", async (t) => {
    const abort = new AbortController();
    const opened = await store.read("big.bin", { signal: abort.signal });
    const source = opened.bytes[Symbol.asyncIterator]();
    await source.next();
    abort.abort();
    await t.rejects(
      (async () => {
        for (;;) if ((await source.next()).done === true) return;
      })(),
    );
    const upload = new AbortController();
    await t.rejects(
      store.write(
        "never.bin",
        (async function* () {
          yield big;
          upload.abort();
          yield big;
        })(),
        { signal: upload.signal },
      ),
    );
    await t.rejects(store.stat("never.bin"), { code: "ARTIFACT_NOT_FOUND" });
    t.strictSame(await left(), []);
  });
}

t.test("fs", async (t) => {
  const root = tempDir(t);
  const outside = tempDir(t);
  writeFileSync(join(outside, "secret"), "outside");
  const stores = open(t, { id: "local", kind: "fs", root });
  const store = await stores.get("local");
  await contract(t, store, async () =>
    readdirSync(root, { recursive: true })
      .map(String)
      .filter((n) => n.includes(".sallyport-")),
  );

  await t.test("links that leave the root are not there; those that stay are", async (t) => {
    symlinkSync(outside, join(root, "out"));
    symlinkSync(join(outside, "secret"), join(root, "file-out"));
    symlinkSync("/proc/self/environ", join(root, "proc"));
    symlinkSync("many", join(root, "in"));
    symlinkSync("loop", join(root, "loop"));
    for (const path of ["out/secret", "file-out", "proc", "out"]) {
      await t.rejects(store.read(path), { code: "PATH_INVALID" }, path);
      await t.rejects(store.stat(path), { code: "PATH_INVALID" }, path);
      await t.rejects(store.delete(path), { code: "PATH_INVALID" }, path);
    }
    await t.rejects(store.list("out", { limit: 10 }), { code: "PATH_INVALID" });
    await t.rejects(store.write("out/new", once("x")), { code: "PATH_INVALID" });
    await t.rejects(store.write("out/deep/new", once("x")), { code: "PATH_INVALID" });
    await t.rejects(store.read("loop"), { code: "PATH_INVALID" });
    // A write replaces the link itself, never what it points to.
    await store.write("file-out", once("mine"));
    t.strictSame(readdirSync(outside), ["secret"]);
    t.equal((await whole((await store.read("in/f00.csv")).bytes)).toString(), "0");
    const names = (await store.list("", { limit: 100 })).entries.map((e) => e.name);
    t.notOk(names.includes("out") || names.includes("proc") || names.includes("loop"));
  });

  await t.test("a root that moves or goes between two questions", async (t) => {
    const base = tempDir(t);
    for (const name of ["first", "second"]) {
      mkdirSync(join(base, name));
      writeFileSync(join(base, name, "which"), name);
      writeFileSync(join(base, name, `only-${name}`), "");
    }
    const named = join(base, "root");
    symlinkSync("first", named);
    const moving = await open(t, { id: "moving", kind: "fs", root: named }).get("moving");
    t.equal((await moving.stat("which")).sizeBytes, 5);
    rmSync(named);
    symlinkSync("second", named);
    t.equal((await moving.stat("only-second")).sizeBytes, 0, "what is only in the new one is found at once");
    await t.rejects(moving.stat("only-first"), { code: "ARTIFACT_NOT_FOUND" });
    t.equal((await moving.stat("which")).sizeBytes, 6);
    rmSync(join(base, "second"), { recursive: true });
    await t.rejects(moving.stat("which"), { code: "STORE_UNREACHABLE" });
  });

  await t.test(
    "a folder that is asked about often, and is moved, exchanged and removed meanwhile",
    { skip: process.platform !== "linux" && "/proc" },
    async (t) => {
      const base = tempDir(t);
      const outside = tempDir(t);
      writeFileSync(join(outside, "file"), "a secret of nine");
      const busy = await open(t, { id: "busy", kind: "fs", root: base }).get("busy");
      const sizeOf = async (path: string) => (await busy.stat(path)).sizeBytes;
      const openFolders = () =>
        readdirSync("/proc/self/fd").filter((fd) => {
          try {
            return readlinkSync(`/proc/self/fd/${fd}`).startsWith(base);
          } catch {
            return false;
          }
        }).length;
      const heat = async (path: string) => {
        for (let n = 0; n < 20; n++) await sizeOf(path);
      };
      mkdirSync(join(base, "folder/deep"), { recursive: true });
      writeFileSync(join(base, "folder/deep/file"), "1");
      await heat("folder/deep/file");
      writeFileSync(join(base, "folder/deep/file"), "22");
      t.equal(await sizeOf("folder/deep/file"), 2, "what it is now");
      await t.rejects(sizeOf("folder/deep/none"), { code: "ARTIFACT_NOT_FOUND" });
      symlinkSync(join(outside, "file"), join(base, "folder/deep/out"));
      await t.rejects(
        sizeOf("folder/deep/out"),
        { code: "PATH_INVALID" },
        "a link in it is followed no less carefully",
      );
      renameSync(join(base, "folder"), join(base, "moved"));
      await t.rejects(sizeOf("folder/deep/file"), { code: "ARTIFACT_NOT_FOUND" }, "a folder above it was moved");
      await heat("moved/deep/file");
      mkdirSync(join(base, "folder/deep"), { recursive: true });
      writeFileSync(join(base, "folder/deep/file"), "333");
      renameSync(join(base, "moved"), join(base, "away"));
      renameSync(join(base, "folder"), join(base, "moved"));
      t.equal(await sizeOf("moved/deep/file"), 3, "another one lies in its place");
      await heat("moved/deep/file");
      rmSync(join(base, "moved/deep"), { recursive: true });
      await t.rejects(sizeOf("moved/deep/file"), { code: "ARTIFACT_NOT_FOUND" });
      symlinkSync(outside, join(base, "moved/deep"));
      await t.rejects(sizeOf("moved/deep/file"), { code: "PATH_INVALID" }, "a link out of the store lies in its place");
      await heat("away/deep/file");
      for (const path of ["away/deep/../../..", "away/deep/../../../etc", ".."])
        await t.rejects(sizeOf(path), { code: /PATH_INVALID|ARTIFACT_NOT_FOUND/ }, path);
      for (let n = 0; n < 200; n++) {
        mkdirSync(join(base, `many${n}`));
        writeFileSync(join(base, `many${n}/file`), "");
        await heat(`many${n}/file`);
      }
      t.ok(openFolders() <= 64 + 4, `${openFolders()} are held`);
      await waitFor("all of them to be closed", () => openFolders() === 0);
    },
  );

  await t.test(
    "a file that may not be read is told of all the same, however often it is asked about",
    { skip: process.platform !== "linux" && "/proc" },
    async (t) => {
      const base = tempDir(t);
      chmodSync(base, 0o755);
      writeFileSync(join(base, "closed"), "12345", { mode: 0 });
      const guarded = await open(t, { id: "guarded", kind: "fs", root: base }).get("guarded");
      const stats = async () => {
        for (let n = 0; n < 20; n++) t.equal((await guarded.stat("closed")).sizeBytes, 5);
        await t.rejects(guarded.read("closed"), { code: "STORE_DENIED" });
      };
      // Root may read everything.
      if (process.geteuid!() !== 0) return stats();
      process.seteuid!(65534);
      try {
        await stats();
      } finally {
        process.seteuid!(0);
      }
    },
  );

  await t.test("rights, a missing root, a file that shrinks", async (t) => {
    const gone = open(t, { id: "gone", kind: "fs", root: join(root, "no-such") });
    await t.rejects((await gone.get("gone")).list("", { limit: 1 }), {
      code: "STORE_UNREACHABLE",
      message: /store gone/,
    });
    await t.rejects(gone.get("other"), { code: "STORE_UNKNOWN", message: /it has gone/ });
    writeFileSync(join(root, "shrinks"), Buffer.alloc(MIB));
    const opened = await store.read("shrinks");
    const source = opened.bytes[Symbol.asyncIterator]();
    await source.next();
    writeFileSync(join(root, "shrinks"), "short");
    await t.rejects(
      (async () => {
        for (;;) if ((await source.next()).done === true) return;
      })(),
      { code: "PRECONDITION_FAILED" },
    );
    mkdirSync(join(root, "folder-target"));
    await t.rejects(store.write("folder-target", once("x")), { code: "NOT_A_FILE" });
    await t.rejects(store.write("keep.txt/below", once("x")), { code: "NOT_A_FILE" });
  });
});

t.test("s3", { skip: needs("s3") }, async (t) => {
  const server = await startS3(t, { tls: true });
  const config = async (over: Partial<Extract<StoreConfig, { kind: "s3" }>> = {}) => ({
    id: "lake",
    kind: "s3" as const,
    endpoint: server.endpoint,
    region: server.region,
    bucket: await server.bucket(),
    prefix: "",
    pathStyle: true,
    ca: server.caFile ?? null,
    accessKeyId: "${env:KEY_ID}",
    secretAccessKey: "${env:SECRET_KEY}",
    sessionToken: null,
    ...over,
  });
  const environment = { KEY_ID: server.accessKeyId, SECRET_KEY: server.secretAccessKey };
  for (const prefix of ["", "team/data/"]) {
    await t.test(prefix === "" ? "the whole bucket" : "a part of it", async (t) => {
      const settings = await config({ prefix });
      const uploads = async (): Promise<string[]> => await multipart(server, settings.bucket);
      await contract(t, await open(t, settings, environment).get("lake"), uploads);
    });
  }

  await t.test("wrong credentials, wrong CA, no bucket, nobody there", async (t) => {
    const list = async (over: Parameters<typeof config>[0], env = environment) =>
      await (await open(t, await config(over), env).get("lake")).list("", { limit: 1 });
    const wrong = "wrong-secret-key-123";
    const denied = await list({}, { ...environment, SECRET_KEY: wrong }).catch((e: unknown) => e);
    t.match(denied, { code: "STORE_DENIED", message: /lake.*secret access key is wrong/, fix: /secretAccessKey/ });
    t.notMatch(JSON.stringify((denied as { toBody(): unknown }).toBody()), wrong);
    await t.rejects(list({}, { ...environment, KEY_ID: "unknown-key-id" }), { code: "STORE_DENIED" });
    await t.rejects(list({ ca: null }), { code: "STORE_TLS", fix: /`ca` of the store/ });
    const otherCa = join(tempDir(t), "ca.pem");
    copyFileSync((await startS3(t, { tls: true })).caFile!, otherCa);
    await t.rejects(list({ ca: otherCa }), { code: "STORE_TLS", fix: new RegExp(otherCa) });
    await t.rejects(list({ ca: "/no/such/ca.pem" }), { code: "CONFIG_INVALID" });
    await t.rejects(list({ bucket: "no-such-bucket-here" }), { code: "STORE_FAILED", message: /no bucket/ });
    await t.rejects(list({ endpoint: "https://127.0.0.1:9" }), { code: "STORE_UNREACHABLE", message: /ECONNREFUSED/ });
    await t.rejects(list({ endpoint: server.endpoint.replace("https", "http") }), { code: /STORE_/ });
    await t.rejects(list({ accessKeyId: "${env:NOT_SET}" }), { code: "SECRET_UNKNOWN", message: /NOT_SET/ });
  });

  await t.test("a rotated key is used after the first refusal", async (t) => {
    const env = { ...environment, SECRET_KEY: "the-old-secret-key" };
    const store = await open(t, await config(), env).get("lake");
    await t.rejects(store.list("", { limit: 1 }), { code: "STORE_DENIED" });
    env.SECRET_KEY = server.secretAccessKey;
    t.strictSame((await store.list("", { limit: 1 })).entries, []);
  });
});

async function multipart(server: S3Server, bucket: string): Promise<string[]> {
  const client = server.client();
  try {
    const { Uploads } = await client.send(new ListMultipartUploadsCommand({ Bucket: bucket }));
    return (Uploads ?? []).map((u) => u.Key ?? "");
  } finally {
    client.destroy();
  }
}
