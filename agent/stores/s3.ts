// A bucket (or a part of one) as a store: any endpoint that speaks S3. Endpoint and credentials are bound to each other
// by the configuration; nothing that crosses the link can change either. The SDK is imported at the first use.
import { createHash, type Hash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import type { Readable } from "node:stream";
import type { GetObjectCommandOutput, HeadObjectCommandOutput, S3Client, S3ClientConfig } from "@aws-sdk/client-s3";
import { ConnectorError, type ArtifactEntry, type Clock, type Digest } from "@sallyport/protocol";
import type { Secrets } from "../secrets/index.ts";
import { mediaTypeOf } from "./media-types.ts";
import { baseName, segmentProblem } from "./path.ts";
import { spanOf } from "./ranges.ts";
import { socketBody } from "./s3-body.ts";
import { s3Error, type S3Target } from "./s3-errors.ts";
import {
  digestMismatch,
  notAFile,
  notATree,
  notFound,
  preconditionFailed,
  rangeInvalid,
  sizeMismatch,
} from "./store-errors.ts";
import type { ArtifactStore, OpenedRead, ReadRange, WriteOptions } from "./store.ts";

export interface S3Options {
  id: string;
  endpoint: string;
  region: string;
  bucket: string;
  prefix: string;
  pathStyle: boolean;
  ca: string | null;
  accessKeyId: string;
  secretAccessKey: string;
  sessionToken: string | null;
}

type Sdk = typeof import("@aws-sdk/client-s3");
interface Connection {
  sdk: Sdk;
  client: S3Client;
}

const MIB = 1024 * 1024;
/** What is held of an upload before it must become a multipart one; and the size of a part. */
const PART_BYTES = 8 * MIB;
/** Parts on their way at a time: with the one being filled, 24 MiB for an upload of unknown size. */
const PARTS_IN_FLIGHT = 2;
const MAX_PARTS = 10_000;
/** No byte for so long while one is awaited. A slow reader on our side does not count. */
const STALL_MS = 30_000;

export class S3Store implements ArtifactStore {
  readonly kind = "s3";
  readonly id: string;
  readonly label: string;
  readonly #options: S3Options;
  readonly #secrets: Secrets;
  readonly #clock: Clock;
  #connection: Promise<Connection> | null = null;

  constructor(options: S3Options, secrets: Secrets, clock: Clock) {
    this.id = options.id;
    this.label = `s3://${options.bucket}/${options.prefix}`;
    this.#options = options;
    this.#secrets = secrets;
    this.#clock = clock;
  }

  async list(
    path: string,
    { cursor, limit, signal }: { cursor?: string; limit: number; signal?: AbortSignal },
  ): Promise<{ entries: ArtifactEntry[]; nextCursor: string | null }> {
    const folder = this.#key(path === "" ? "" : `${path}/`);
    const page = await this.#send(
      path,
      signal,
      {},
      async ({ sdk, client }, options) =>
        await client.send(
          new sdk.ListObjectsV2Command({
            Bucket: this.#options.bucket,
            Prefix: folder,
            Delimiter: "/",
            MaxKeys: limit,
            ...(cursor === undefined ? {} : { ContinuationToken: cursor }),
          }),
          options,
        ),
    );
    const files = (page.Contents ?? []).flatMap((o): ArtifactEntry[] => {
      const name = (o.Key ?? "").slice(folder.length);
      return segmentProblem(name) !== null
        ? []
        : [entryOf(this.#path(o.Key!), o.Size ?? 0, o.LastModified, o.ETag, undefined)];
    });
    const trees = (page.CommonPrefixes ?? []).flatMap((p): ArtifactEntry[] => {
      const name = (p.Prefix ?? "").slice(folder.length, -1);
      return segmentProblem(name) !== null ? [] : [treeOf(this.#path(p.Prefix!.slice(0, -1)))];
    });
    if (
      cursor === undefined &&
      path !== "" &&
      (page.Contents ?? []).length === 0 &&
      (page.CommonPrefixes ?? []).length === 0
    ) {
      const head = await this.#headOrNull(path, signal);
      throw head === null ? notFound(this.id, path) : notATree(this.id, path);
    }
    const entries = [...files, ...trees].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
    return { entries, nextCursor: page.IsTruncated === true ? (page.NextContinuationToken ?? null) : null };
  }

  async stat(path: string, options: { signal?: AbortSignal } = {}): Promise<ArtifactEntry> {
    if (path === "") return treeOf("");
    const head = await this.#headOrNull(path, options.signal);
    if (head !== null) return entryOf(path, head.ContentLength ?? 0, head.LastModified, head.ETag, head.ContentType);
    if (await this.#hasChildren(path, options.signal)) return treeOf(path);
    throw notFound(this.id, path);
  }

  async read(
    path: string,
    options: { range?: ReadRange; suffixBytes?: number; ifMatch?: string; signal?: AbortSignal } = {},
  ): Promise<OpenedRead> {
    if (path === "") throw notAFile(this.id, path);
    const { range, suffixBytes, ifMatch, signal } = options;
    if (range?.end !== undefined && range.end < range.start) throw rangeInvalid(this.id, path, 0);
    const Range =
      suffixBytes !== undefined
        ? `bytes=-${suffixBytes}`
        : range === undefined
          ? undefined
          : `bytes=${range.start}-${range.end ?? ""}`;
    // Aborts the body too, which outlives the call that opened it.
    const abort = new AbortController();
    const forward = (): void => abort.abort(signal?.reason);
    if (signal?.aborted === true) forward();
    signal?.addEventListener("abort", forward, { once: true });
    const release = (): void => signal?.removeEventListener("abort", forward);
    let got: GetObjectCommandOutput;
    try {
      got = await this.#send(
        path,
        abort.signal,
        {},
        async ({ sdk, client }, sendOptions) =>
          await client.send(
            new sdk.GetObjectCommand({
              Bucket: this.#options.bucket,
              Key: this.#key(path),
              ...(Range === undefined ? {} : { Range }),
              ...(ifMatch === undefined ? {} : { IfMatch: etagOf(ifMatch) }),
            }),
            sendOptions,
          ),
      );
    } catch (error) {
      release();
      if (statusOf(error) === 416) return await this.#readNothing(path, options);
      if (
        error instanceof ConnectorError &&
        error.code === "ARTIFACT_NOT_FOUND" &&
        (await this.#hasChildren(path, signal))
      )
        throw notAFile(this.id, path);
      throw error;
    }
    const lengthBytes = got.ContentLength ?? 0;
    const span = /^bytes (\d+)-\d+\/(\d+)$/.exec(got.ContentRange ?? "");
    const entry = entryOf(
      path,
      span === null ? lengthBytes : Number(span[2]),
      got.LastModified,
      got.ETag,
      got.ContentType,
    );
    return {
      start: span === null ? 0 : Number(span[1]),
      lengthBytes,
      totalBytes: entry.sizeBytes!,
      version: entry.version!,
      mediaType: entry.mediaType!,
      modifiedAt: entry.modifiedAt,
      bytes: this.#body(got.Body as Readable, lengthBytes, path, abort, release),
    };
  }

  /** A range that begins at the very end, or an empty object: S3 says 416 to both. */
  async #readNothing(
    path: string,
    options: { range?: ReadRange; suffixBytes?: number; ifMatch?: string; signal?: AbortSignal },
  ): Promise<OpenedRead> {
    const entry = await this.stat(path, options);
    if (entry.kind === "tree") throw notAFile(this.id, path);
    const totalBytes = entry.sizeBytes!;
    if (options.ifMatch !== undefined && options.ifMatch !== entry.version)
      throw preconditionFailed(this.id, path, entry.version);
    const { start, lengthBytes } = spanOf(this.id, path, totalBytes, options.range, options.suffixBytes);
    if (lengthBytes > 0) throw rangeInvalid(this.id, path, totalBytes);
    async function* nothing(): AsyncGenerator<Buffer> {}
    return {
      start,
      lengthBytes,
      totalBytes,
      version: entry.version!,
      mediaType: entry.mediaType!,
      modifiedAt: entry.modifiedAt,
      bytes: nothing(),
    };
  }

  #body(
    body: Readable,
    lengthBytes: number,
    path: string,
    abort: AbortController,
    release: () => void,
  ): AsyncIterable<Buffer> {
    const target = this.#target(path);
    const clock = this.#clock;
    // Without a listener an abort before the first pull would be an uncaught error.
    body.on("error", () => {});
    // The socket hands over 64 KiB at a time and is read only as far as we pull.
    const source = socketBody(body, lengthBytes) ?? (body[Symbol.asyncIterator]() as AsyncIterator<Buffer>);
    let left = lengthBytes;
    let ended = false;
    const end = (): void => {
      if (ended) return;
      ended = true;
      release();
      body.destroy();
    };
    return {
      [Symbol.asyncIterator]() {
        return {
          async next(): Promise<IteratorResult<Buffer>> {
            const stalled = clock.after(STALL_MS, () =>
              abort.abort(
                new ConnectorError(
                  "STORE_UNREACHABLE",
                  `Store ${target.store} sent nothing for ${STALL_MS / 1000} seconds.`,
                  { fix: "Try again; look at the store's load." },
                ),
              ),
            );
            try {
              abort.signal.throwIfAborted();
              const step = await source.next();
              if (step.done === true) {
                end();
                if (left > 0)
                  throw new ConnectorError(
                    "STORE_UNREACHABLE",
                    `Store ${target.store} broke off ${left} bytes before the end of ${JSON.stringify(path)}.`,
                    { fix: "Read on from there." },
                  );
                return { done: true, value: undefined };
              }
              left -= step.value.length;
              return step;
            } catch (error) {
              end();
              const reason: unknown = abort.signal.aborted ? abort.signal.reason : error;
              throw s3Error(reason, target);
            } finally {
              stalled.cancel();
            }
          },
          async return(): Promise<IteratorResult<Buffer>> {
            end();
            return await Promise.resolve({ done: true, value: undefined });
          },
        };
      },
    };
  }

  async write(
    path: string,
    bytes: AsyncIterable<Uint8Array>,
    options: WriteOptions = {},
  ): Promise<{ version: string; sizeBytes: number; digest: Digest }> {
    if (path === "") throw notAFile(this.id, path);
    const upload = new Upload(path, this.#key(path), options);
    const parts = partsOf(bytes, upload, options, this.id);
    const first = await parts.next();
    const firstBytes = first.value ?? Buffer.alloc(0);
    if (upload.sourceEnded) return await this.#put(upload, firstBytes);
    return await this.#putParts(upload, firstBytes, parts);
  }

  #conditions(options: WriteOptions): { IfMatch?: string; IfNoneMatch?: string } {
    return {
      ...(options.ifMatch === undefined ? {} : { IfMatch: etagOf(options.ifMatch) }),
      ...(options.ifNoneMatch === undefined ? {} : { IfNoneMatch: "*" }),
    };
  }

  async #put(upload: Upload, body: Buffer): Promise<{ version: string; sizeBytes: number; digest: Digest }> {
    const { path, options } = upload;
    const digest = upload.finish(this.id);
    const put = await this.#send(
      path,
      options.signal,
      extra(options),
      async ({ sdk, client }, sendOptions) =>
        await client.send(
          new sdk.PutObjectCommand({
            Bucket: this.#options.bucket,
            Key: upload.key,
            Body: body,
            ContentLength: body.length,
            ContentType: options.mediaType ?? mediaTypeOf(path),
            ChecksumSHA256: Buffer.from(digest.slice("sha256:".length), "hex").toString("base64"),
            ...this.#conditions(options),
          }),
          sendOptions,
        ),
    );
    return { version: versionOf(put.ETag), sizeBytes: upload.sizeBytes, digest };
  }

  /** Nothing is visible before Complete, and Complete is not said before size and digest are right. */
  async #putParts(
    upload: Upload,
    first: Buffer,
    rest: AsyncGenerator<Buffer, undefined>,
  ): Promise<{ version: string; sizeBytes: number; digest: Digest }> {
    const { path, key, options } = upload;
    const place = { Bucket: this.#options.bucket, Key: key };
    const { UploadId } = await this.#send(
      path,
      options.signal,
      {},
      async ({ sdk, client }, sendOptions) =>
        await client.send(
          new sdk.CreateMultipartUploadCommand({ ...place, ContentType: options.mediaType ?? mediaTypeOf(path) }),
          sendOptions,
        ),
    );
    const done: { PartNumber: number; ETag: string | undefined }[] = [];
    const inFlight = new Set<Promise<void>>();
    const stop = new AbortController();
    const signal = options.signal === undefined ? stop.signal : AbortSignal.any([options.signal, stop.signal]);
    let failure: unknown;
    const sendPart = (PartNumber: number, Body: Buffer): void => {
      const sent: Promise<void> = this.#send(
        path,
        signal,
        {},
        async ({ sdk, client }, sendOptions) =>
          await client.send(
            new sdk.UploadPartCommand({ ...place, UploadId, PartNumber, Body, ContentLength: Body.length }),
            sendOptions,
          ),
      ).then(
        ({ ETag }) => {
          done.push({ PartNumber, ETag });
          inFlight.delete(sent);
          upload.sent(Body);
        },
        (error: unknown) => {
          failure ??= error;
          inFlight.delete(sent);
          stop.abort();
        },
      );
      inFlight.add(sent);
    };
    try {
      let number = 1;
      sendPart(number, first);
      for await (const part of rest) {
        number++;
        if (number > MAX_PARTS)
          throw new ConnectorError(
            "TOO_LARGE",
            `The upload to ${JSON.stringify(path)} in store ${this.id} has more than ${MAX_PARTS} parts.`,
            { fix: "State its size beforehand, so that larger parts are used." },
          );
        if (inFlight.size >= PARTS_IN_FLIGHT) await Promise.race(inFlight);
        if (failure !== undefined) throw failure as Error;
        sendPart(number, part);
      }
      await Promise.all(inFlight);
      if (failure !== undefined) throw failure as Error;
      const digest = upload.finish(this.id);
      const Parts = done.sort((a, b) => a.PartNumber - b.PartNumber);
      const completed = await this.#send(
        path,
        options.signal,
        extra(options),
        async ({ sdk, client }, sendOptions) =>
          await client.send(
            new sdk.CompleteMultipartUploadCommand({
              ...place,
              UploadId,
              MultipartUpload: { Parts },
              ...this.#conditions(options),
            }),
            sendOptions,
          ),
      );
      return { version: versionOf(completed.ETag), sizeBytes: upload.sizeBytes, digest };
    } catch (error) {
      stop.abort();
      await Promise.all(inFlight);
      // Parts that stay would be paid for and never seen. What fails here is told by the first error already.
      await this.#send(
        path,
        undefined,
        {},
        async ({ sdk, client }, sendOptions) =>
          await client.send(new sdk.AbortMultipartUploadCommand({ ...place, UploadId }), sendOptions),
      ).catch(() => {});
      throw error;
    }
  }

  async delete(path: string, options: { ifMatch?: string; signal?: AbortSignal } = {}): Promise<void> {
    // S3 says yes to the deletion of nothing, and some servers ignore If-Match here: so it is looked at first.
    const entry = await this.stat(path, options);
    if (entry.kind === "tree") throw notAFile(this.id, path);
    if (options.ifMatch !== undefined && options.ifMatch !== entry.version)
      throw preconditionFailed(this.id, path, entry.version);
    await this.#send(
      path,
      options.signal,
      {},
      async ({ sdk, client }, sendOptions) =>
        await client.send(
          new sdk.DeleteObjectCommand({
            Bucket: this.#options.bucket,
            Key: this.#key(path),
            ...(options.ifMatch === undefined ? {} : { IfMatch: etagOf(options.ifMatch) }),
          }),
          sendOptions,
        ),
    );
  }

  /** Lets go of sockets. The store may be used again afterwards. */
  async close(): Promise<void> {
    const connection = this.#connection;
    this.#connection = null;
    await connection?.then(({ client }) => client.destroy()).catch(() => {});
  }

  #key(path: string): string {
    return this.#options.prefix + path;
  }
  #path(key: string): string {
    return key.slice(this.#options.prefix.length);
  }
  #target(path: string): S3Target {
    const { endpoint, bucket, ca } = this.#options;
    return { store: this.id, path, endpoint, bucket, ca };
  }

  async #headOrNull(path: string, signal?: AbortSignal): Promise<HeadObjectCommandOutput | null> {
    try {
      return await this.#send(
        path,
        signal,
        {},
        async ({ sdk, client }, options) =>
          await client.send(new sdk.HeadObjectCommand({ Bucket: this.#options.bucket, Key: this.#key(path) }), options),
      );
    } catch (error) {
      if (error instanceof ConnectorError && error.code === "ARTIFACT_NOT_FOUND") return null;
      throw error;
    }
  }

  async #hasChildren(path: string, signal?: AbortSignal): Promise<boolean> {
    const page = await this.#send(
      path,
      signal,
      {},
      async ({ sdk, client }, options) =>
        await client.send(
          new sdk.ListObjectsV2Command({ Bucket: this.#options.bucket, Prefix: this.#key(`${path}/`), MaxKeys: 1 }),
          options,
        ),
    );
    return (page.Contents ?? []).length > 0;
  }

  /** One call, its failure in our codes. A refusal makes credentials be resolved anew, once. */
  async #send<T>(
    path: string,
    signal: AbortSignal | undefined,
    target: Partial<S3Target>,
    call: (connection: Connection, options: { abortSignal?: AbortSignal }) => Promise<T>,
  ): Promise<T> {
    const options = signal === undefined ? {} : { abortSignal: signal };
    for (let renewed = false; ; renewed = true) {
      const connecting = (this.#connection ??= this.#connect());
      try {
        signal?.throwIfAborted();
        return await call(await connecting, options);
      } catch (error) {
        const mapped =
          signal?.aborted === true && signal.reason instanceof ConnectorError
            ? signal.reason
            : s3Error(error, { ...this.#target(path), ...target });
        // A client that could not be made must not be kept.
        if (mapped instanceof ConnectorError && /^(SECRET_|CONFIG_)/.test(mapped.code)) this.#drop(connecting);
        if (renewed || !(mapped instanceof ConnectorError) || mapped.code !== "STORE_DENIED") {
          if (statusOf(error) === 416) throw error;
          throw mapped;
        }
        if (!(await this.#renewed())) throw mapped;
        this.#drop(connecting);
      }
    }
  }

  #drop(connecting: Promise<Connection>): void {
    if (this.#connection === connecting) this.#connection = null;
    // Not destroyed: other calls may be using it. Its sockets close when they have been idle.
  }

  /** Asks the providers again; true when a credential is another one than before. */
  async #renewed(): Promise<boolean> {
    if (this.#secrets.forget === undefined) return false;
    const texts = [this.#options.accessKeyId, this.#options.secretAccessKey, this.#options.sessionToken].filter(
      (s) => s !== null,
    );
    const reveal = async (): Promise<string> =>
      JSON.stringify(await Promise.all(texts.map(async (text) => (await this.#secrets.resolve(text)).reveal())));
    try {
      const before = await reveal();
      for (const text of texts) this.#secrets.forget(text);
      return (await reveal()) !== before;
    } catch {
      return false; // the refusal itself is the better thing to tell
    }
  }

  async #connect(): Promise<Connection> {
    const { endpoint, region, pathStyle, accessKeyId, secretAccessKey, sessionToken } = this.#options;
    const [sdk, ca] = await Promise.all([import("@aws-sdk/client-s3"), this.#readCa()]);
    const config: S3ClientConfig = {
      endpoint,
      region,
      forcePathStyle: pathStyle,
      // The file alone decides: not the machine's AWS settings, not the bucket's answer.
      ignoreConfiguredEndpointUrls: true,
      followRegionRedirects: false,
      useFipsEndpoint: false,
      useDualstackEndpoint: false,
      useAccelerateEndpoint: false,
      useArnRegion: false,
      disableS3ExpressSessionAuth: true,
      disableMultiregionAccessPoints: true,
      defaultsMode: "standard",
      retryMode: "standard",
      maxAttempts: 3,
      userAgentAppId: "sallyport",
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
      requestHandler: {
        connectionTimeout: 5000,
        // Of a body we watch ourselves, and only while we wait for it: a slow reader must not look like a slow store.
        requestTimeout: 0,
        socketTimeout: 0,
        // Agents, not their options: for a large body the handler makes a new agent of its own, which would not have the CA.
        httpsAgent: new HttpsAgent({
          keepAlive: true,
          maxSockets: 64,
          rejectUnauthorized: true,
          ...(ca === null ? {} : { ca }),
        }),
        httpAgent: new HttpAgent({ keepAlive: true, maxSockets: 64 }),
      },
      credentials: async () => {
        const [key, secret, token] = await Promise.all([
          this.#secrets.resolve(accessKeyId),
          this.#secrets.resolve(secretAccessKey),
          sessionToken === null ? null : this.#secrets.resolve(sessionToken),
        ]);
        return {
          accessKeyId: key.reveal(),
          secretAccessKey: secret.reveal(),
          ...(token === null ? {} : { sessionToken: token.reveal() }),
          // Asked for again after this, so that a rotated value is used without a restart.
          expiration: new Date(Date.now() + 6 * 60_000),
        };
      },
    };
    return { sdk, client: new sdk.S3Client(config) };
  }

  async #readCa(): Promise<string | null> {
    if (this.#options.ca === null) return null;
    try {
      return await readFile(this.#options.ca, "utf8");
    } catch (cause) {
      throw new ConnectorError(
        "CONFIG_INVALID",
        `The CA file ${this.#options.ca} of store ${this.id} cannot be read.`,
        { fix: "Correct `ca` of the store, or let the agent's user read the file.", cause },
      );
    }
  }
}

/** What has come of an upload so far. */
class Upload {
  readonly path: string;
  readonly key: string;
  readonly options: WriteOptions;
  readonly hash: Hash = createHash("sha256");
  sizeBytes = 0;
  sourceEnded = false;

  constructor(path: string, key: string, options: WriteOptions) {
    this.path = path;
    this.key = key;
    this.options = options;
  }

  /** Buffers of parts that were sent: three of them serve an upload of any length. */
  readonly #free: Buffer[] = [];

  buffer(sizeBytes: number): Buffer {
    const found = this.#free.findIndex((b) => b.length >= sizeBytes);
    return found === -1 ? Buffer.allocUnsafeSlow(sizeBytes) : this.#free.splice(found, 1)[0]!;
  }
  sent(part: Buffer): void {
    const whole = Buffer.from(part.buffer, 0, part.buffer.byteLength);
    if (whole.length >= PART_BYTES && this.#free.length < PARTS_IN_FLIGHT + 1) this.#free.push(whole);
  }

  /** The digest, when it and the size are what was stated. */
  finish(store: string): Digest {
    const { options, path } = this;
    if (options.sizeBytes !== undefined && this.sizeBytes !== options.sizeBytes)
      throw sizeMismatch(store, path, options.sizeBytes, this.sizeBytes);
    const digest: Digest = `sha256:${this.hash.digest("hex")}`;
    if (options.digest !== undefined && options.digest !== digest)
      throw digestMismatch(store, path, options.digest, digest);
    return digest;
  }
}

/** Cuts what comes into parts; the last one may be short. `sourceEnded` is true when the part given is the last. */
async function* partsOf(
  bytes: AsyncIterable<Uint8Array>,
  upload: Upload,
  options: WriteOptions,
  store: string,
): AsyncGenerator<Buffer, undefined> {
  let part: Buffer = Buffer.alloc(0);
  let filled = 0;
  let count = 0;
  // Of a known size, parts are large enough that there are not too many; of an unknown one they grow on the way.
  const partBytes = (): number =>
    options.sizeBytes !== undefined
      ? Math.max(PART_BYTES, Math.ceil(options.sizeBytes / (MAX_PARTS - 10) / MIB) * MIB)
      : count < 2000
        ? PART_BYTES
        : count < 5000
          ? 4 * PART_BYTES
          : 8 * PART_BYTES;
  const take = (): Buffer => {
    const taken = part.subarray(0, filled);
    part = Buffer.alloc(0);
    filled = 0;
    count++;
    return taken;
  };
  for await (const chunk of bytes) {
    options.signal?.throwIfAborted();
    upload.hash.update(chunk);
    upload.sizeBytes += chunk.byteLength;
    if (options.sizeBytes !== undefined && upload.sizeBytes > options.sizeBytes)
      throw sizeMismatch(store, upload.path, options.sizeBytes, upload.sizeBytes);
    for (let at = 0; at < chunk.byteLength;) {
      const most = partBytes();
      // A part is given only when something follows it, so that the last one is known as such.
      if (filled >= most) {
        yield take();
        continue;
      }
      const length = Math.min(most - filled, chunk.byteLength - at);
      if (filled + length > part.length) {
        // Small uploads get small buffers; the later parts of a large one are whole from the start, and used again.
        const wanted = count > 0 ? most : Math.min(most, Math.max(64 * 1024, 2 * part.length, filled + length));
        const larger = upload.buffer(wanted);
        part.copy(larger, 0, 0, filled);
        part = larger;
      }
      // A copy: the source may use its buffer again once we ask for more.
      part.set(chunk.subarray(at, at + length), filled);
      filled += length;
      at += length;
    }
  }
  upload.sourceEnded = true;
  yield take();
}

/** A failed condition means another thing for a write that was to make, and for one that was to replace. */
const extra = (options: WriteOptions): Partial<S3Target> =>
  options.ifNoneMatch !== undefined ? { create: true } : options.ifMatch !== undefined ? { create: false } : {};

const statusOf = (error: unknown): number | undefined =>
  (error as { $metadata?: { httpStatusCode?: number } } | null)?.$metadata?.httpStatusCode;

/** An ETag without its quotes; it names content, so it changes when the object does. */
const versionOf = (etag: string | undefined): string => (etag ?? "").replaceAll('"', "");
const etagOf = (version: string): string => `"${version}"`;

const treeOf = (path: string): ArtifactEntry => ({
  name: baseName(path),
  path,
  kind: "tree",
  sizeBytes: null,
  modifiedAt: null,
  version: null,
  mediaType: null,
});
/** The name decides about the type where it can: what a store has noted is often `binary/octet-stream`. */
function entryOf(
  path: string,
  sizeBytes: number,
  modified: Date | undefined,
  etag: string | undefined,
  noted: string | undefined,
): ArtifactEntry {
  const byName = mediaTypeOf(path);
  const useful = noted !== undefined && !/octet-stream|x-directory/.test(noted) && /^[\w.+-]+\/[\w.+-]+$/.test(noted);
  return {
    name: baseName(path),
    path,
    kind: "file",
    sizeBytes,
    modifiedAt: modified?.getTime() ?? null,
    version: versionOf(etag),
    mediaType: byName === "application/octet-stream" && useful ? noted : byName,
  };
}
