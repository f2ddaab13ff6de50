/**
 * URL of a worker's or child's entry file beside the caller: `entryUrl(import.meta.url, './worker')`. The entry has
 * the caller's own extension: .ts where Node strips types, .js in the compiled tree.
 */
export function entryUrl(callerUrl: string, base: string): URL {
  const extension = callerUrl.slice(callerUrl.lastIndexOf("."));
  return new URL(base + extension, callerUrl);
}
