// Media types by extension. What is not here is application/octet-stream: bytes are never guessed into something active.

const TYPES: Record<string, string> = {
  txt: "text/plain",
  log: "text/plain",
  out: "text/plain",
  err: "text/plain",
  md: "text/markdown",
  markdown: "text/markdown",
  csv: "text/csv",
  tsv: "text/tab-separated-values",
  json: "application/json",
  ipynb: "application/json",
  jsonl: "application/x-ndjson",
  ndjson: "application/x-ndjson",
  yaml: "application/yaml",
  yml: "application/yaml",
  toml: "application/toml",
  xml: "application/xml",
  ini: "text/plain",
  cfg: "text/plain",
  conf: "text/plain",
  env: "text/plain",
  html: "text/html",
  htm: "text/html",
  css: "text/css",
  js: "text/javascript",
  mjs: "text/javascript",
  cjs: "text/javascript",
  ts: "text/x-typescript",
  tsx: "text/x-typescript",
  jsx: "text/javascript",
  py: "text/x-python",
  sh: "text/x-shellscript",
  sql: "text/x-sql",
  r: "text/x-r",
  go: "text/x-go",
  rs: "text/x-rust",
  java: "text/x-java",
  c: "text/x-c",
  h: "text/x-c",
  cpp: "text/x-c++",
  hpp: "text/x-c++",
  rb: "text/x-ruby",
  scala: "text/x-scala",
  dockerfile: "text/x-dockerfile",
  proto: "text/x-protobuf",
  tf: "text/x-terraform",
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
  svg: "image/svg+xml",
  bmp: "image/bmp",
  ico: "image/vnd.microsoft.icon",
  tif: "image/tiff",
  tiff: "image/tiff",
  pdf: "application/pdf",
  zip: "application/zip",
  gz: "application/gzip",
  tgz: "application/gzip",
  tar: "application/x-tar",
  zst: "application/zstd",
  onnx: "application/x-onnx",
  safetensors: "application/x-safetensors",
  gguf: "application/x-gguf",
  pkl: "application/x-pickle",
  pickle: "application/x-pickle",
  pt: "application/x-pytorch",
  pth: "application/x-pytorch",
  joblib: "application/x-pickle",
  h5: "application/x-hdf5",
  hdf5: "application/x-hdf5",
  parquet: "application/vnd.apache.parquet",
  arrow: "application/vnd.apache.arrow.file",
  feather: "application/vnd.apache.arrow.file",
  npy: "application/x-npy",
  npz: "application/zip",
  avro: "application/avro",
  sqlite: "application/vnd.sqlite3",
  mp3: "audio/mpeg",
  wav: "audio/wav",
  mp4: "video/mp4",
  webm: "video/webm",
};
export const UNKNOWN_TYPE = "application/octet-stream";

export function extensionOf(name: string): string {
  const base = name.slice(name.lastIndexOf("/") + 1).toLowerCase();
  const dot = base.lastIndexOf(".");
  return dot <= 0 ? base : base.slice(dot + 1);
}

export function mediaTypeOf(name: string): string {
  const extension = extensionOf(name);
  return Object.hasOwn(TYPES, extension) ? TYPES[extension]! : UNKNOWN_TYPE;
}

/** The image type that the first bytes prove; null for anything else. */
export function imageTypeOf(head: Uint8Array): string | null {
  const bytes = Buffer.from(head.buffer, head.byteOffset, Math.min(head.byteLength, 16));
  if (bytes.subarray(0, 8).equals(Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]))) return "image/png";
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return "image/jpeg";
  const text = bytes.toString("latin1");
  if (text.startsWith("GIF87a") || text.startsWith("GIF89a")) return "image/gif";
  if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "image/webp";
  return null;
}
