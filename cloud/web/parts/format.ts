// Figures as people read them. Pure functions; their units are in their names.

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"];
/** 0 B, 812 B, 1.2 KB, 34 MB: powers of 1000, at most three figures. */
export function formatBytes(bytes: number | null | undefined): string {
  if (bytes === null || bytes === undefined || !Number.isFinite(bytes)) return "–";
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  const digits = unit === 0 || value >= 99.5 ? 0 : value >= 9.95 ? 1 : 2;
  return `${trimZeros(value.toFixed(digits))} ${UNITS[unit]}`;
}

const trimZeros = (text: string) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

/** 340 ms, 4.2 s, 3 m 07 s, 2 h 04 m, 3 d 5 h. */
export function formatDuration(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  const value = Math.max(0, ms);
  if (value < 999.5) return `${Math.round(value)} ms`;
  const seconds = value / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (n: number) => String(n).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} m ${two(whole % 60)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} m`;
  const hours = Math.round(seconds / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** As `formatDuration`, of what still goes on and is counted on the page: whole seconds. */
export const formatAge = (ms: number): string =>
  ms < 9_950 ? `${Math.max(0, Math.floor(ms / 1000))} s` : formatDuration(ms);

/** just now, 12 s ago, 4 min ago, 3 h ago, 2 d ago; "in 40 min" for what is to come. */
export function formatAgo(atMs: number, nowMs: number): string {
  const delta = nowMs - atMs;
  const abs = Math.abs(delta);
  // What lies ahead is rounded: a token made for 30 days expires in 30 d, not in 29 d.
  const whole = delta < 0 ? Math.round : Math.floor;
  const text =
    abs < 60_000
      ? `${whole(abs / 1000)} s`
      : abs < 3600_000
        ? `${whole(abs / 60_000)} min`
        : abs < 86_400_000
          ? `${whole(abs / 3600_000)} h`
          : `${whole(abs / 86_400_000)} d`;
  if (abs < 2_000) return "just now";
  return delta >= 0 ? `${text} ago` : `in ${text}`;
}

const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const formatTime = (atMs: number): string => absolute.format(atMs);
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
export const formatClock = (atMs: number): string => clock.format(atMs);
const clockMs = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
});
export const formatClockMs = (atMs: number): string => clockMs.format(atMs);

const plain = new Intl.NumberFormat("en");
/** 12,345 */
export const formatCount = (n: number): string => plain.format(n);
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 12 });
/** Up to six significant figures, without noise at the end. */
export function formatFigure(n: number): string {
  if (!Number.isFinite(n)) return String(n);
  if (Number.isInteger(n) && Math.abs(n) < 1e15) return plain.format(n);
  const abs = Math.abs(n);
  if (abs < 1e-4 || abs >= 1e15) return n.toExponential(3);
  return exact.format(Number(n.toPrecision(6)));
}

/** `rep_0199a1…4f2c` for a place where an id is too long; whole ids are copied, never shortened ones. */
export function shortId(id: string): string {
  if (/^[a-z]+_[0-9a-f]{32}$/.test(id)) return `${id.slice(0, id.indexOf("_") + 1)}…${id.slice(-8)}`;
  return id.length > 16 ? `${id.slice(0, 8)}…${id.slice(-4)}` : id;
}

/** `registry/name@sha256:0123456789ab…`: enough to recognise an image by. */
export const shortImage = (image: string): string => image.replace(/(sha256:[0-9a-f]{12})[0-9a-f]{52}$/, "$1…");
export const shortDigest = (digest: string): string => digest.replace(/^(sha256:[0-9a-f]{12})[0-9a-f]+$/, "$1…");

/** Requests in a minute as requests per second: 0, 0.2, 12.5, 1,240. */
export function formatRate(perMinute: number): string {
  const rate = perMinute / 60;
  if (rate === 0) return "0";
  if (rate < 0.1) return "<0.1";
  return rate < 99.95 ? trimZeros(rate.toFixed(1)) : plain.format(Math.round(rate));
}
/** 0.42 ms, 3.1 ms, 48 ms, 1.2 s. */
export function formatLatency(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  if (ms >= 999.5) return formatDuration(ms);
  return `${ms < 0.995 ? trimZeros(ms.toFixed(2)) : ms < 9.95 ? trimZeros(ms.toFixed(1)) : Math.round(ms)} ms`;
}

export const plural = (n: number, one: string, many = `${one}s`): string => `${formatCount(n)} ${n === 1 ? one : many}`;

/** Without the codes that a terminal would turn into colours or cursor movements. */
// eslint-disable-next-line no-control-regex -- these control characters are what is looked for
const ANSI = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-Z\\-_])/g;
export const stripAnsi = (text: string): string => (text.includes("\u001b") ? text.replace(ANSI, "") : text);
