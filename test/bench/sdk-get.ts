// The peer of an artifact's way: the SDK's own GET in one process, read to nowhere. Told an object by a message, answers
// with seconds, bytes and its CPU seconds.
import { GetObjectCommand, S3Client } from "@aws-sdk/client-s3";

export interface SdkOrder {
  endpoint: string;
  region: string;
  accessKeyId: string;
  secretAccessKey: string;
  bucket: string;
  key: string;
}
export interface SdkAnswer {
  seconds: number;
  bytes: number;
  cpuS: number;
}

async function get(order: SdkOrder): Promise<SdkAnswer> {
  const { endpoint, region, bucket, key, ...credentials } = order;
  const client = new S3Client({ endpoint, region, credentials, forcePathStyle: true });
  const cpu = process.cpuUsage();
  const began = performance.now();
  const { Body } = await client.send(new GetObjectCommand({ Bucket: bucket, Key: key }));
  let bytes = 0;
  for await (const chunk of Body as AsyncIterable<Buffer>) bytes += chunk.length;
  const seconds = (performance.now() - began) / 1000;
  const used = process.cpuUsage(cpu);
  client.destroy();
  return { seconds, bytes, cpuS: (used.user + used.system) / 1e6 };
}

process.on("disconnect", () => process.exit(0));
process.on("message", (order: SdkOrder) => void get(order).then((answer) => process.send!(answer)));
process.send!("ready");
