// The configuration as text for people: YAML, secrets as stars, and beside each value where it came from.
import { Document, isMap, isScalar, isSeq } from "yaml";
import { withStars, type CompiledConfig } from "./config.ts";
import type { FieldPath } from "./problems.ts";

export function showConfig(compiled: CompiledConfig, options: { origin?: boolean } = {}): string {
  const document = new Document(withStars(compiled.config));
  if (options.origin === true) annotate(document.contents, [], compiled.originOf);
  return document.toString({ lineWidth: 0 });
}

function annotate(node: unknown, path: FieldPath, originOf: (path: FieldPath) => string): void {
  if (isMap(node)) {
    for (const pair of node.items)
      annotate(pair.value, [...path, isScalar(pair.key) ? String(pair.key.value) : ""], originOf);
    if (node.items.length === 0) node.comment = ` ${originOf(path)}`;
  } else if (isSeq(node)) {
    for (const [i, item] of node.items.entries()) annotate(item, [...path, i], originOf);
    if (node.items.length === 0) node.comment = ` ${originOf(path)}`;
  } else if (isScalar(node)) {
    node.comment = ` ${originOf(path)}`;
  }
}
