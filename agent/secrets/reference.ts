// The grammar of secret references in the configuration. Pure: says what is referred to, resolves nothing.
//   ${env:NAME}   ${file:/run/secrets/x}   ${vault:mount/path/of/secret#field}   and $${ for a literal ${

export type SecretReference =
  | { provider: "env"; name: string; text: string }
  | { provider: "file"; path: string; text: string }
  | { provider: "vault"; mount: string; path: string; field: string; text: string };
export type Part = { literal: string } | { reference: SecretReference };

/** Parts of the text in order, or a sentence's end that says what is wrong with it (never with a value in it). */
export function parseReferences(text: string): { parts: Part[] } | { problem: string } {
  const parts: Part[] = [];
  let literal = "";
  let at = 0;
  while (at < text.length) {
    if (text.startsWith("$${", at)) {
      literal += "${";
      at += 3;
      continue;
    }
    if (!text.startsWith("${", at)) {
      literal += text[at++]!;
      continue;
    }
    const end = text.indexOf("}", at);
    if (end === -1) return { problem: "has a `${` without its `}` (write `$${` for a literal one)" };
    const whole = text.slice(at, end + 1);
    const reference = parseOne(whole);
    if ("problem" in reference) return reference;
    if (literal !== "") parts.push({ literal });
    literal = "";
    parts.push({ reference });
    at = end + 1;
  }
  if (literal !== "") parts.push({ literal });
  return { parts };
}

function parseOne(whole: string): SecretReference | { problem: string } {
  const inner = whole.slice(2, -1);
  const colon = inner.indexOf(":");
  const provider = colon === -1 ? inner : inner.slice(0, colon);
  const rest = colon === -1 ? "" : inner.slice(colon + 1);
  switch (provider) {
    case "env":
      if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(rest))
        return { problem: "has an `env` reference that is not of the form ${env:NAME}" };
      return { provider, name: rest, text: whole };
    case "file":
      if (!rest.startsWith("/") || rest.includes("\0"))
        return { problem: "has a `file` reference without an absolute path, such as ${file:/run/secrets/x}" };
      return { provider, path: rest, text: whole };
    case "vault": {
      // Only characters that mean the same to Vault, to its HTTP client and to a reader.
      const match = /^([A-Za-z0-9_-]+)\/([A-Za-z0-9_.-]+(?:\/[A-Za-z0-9_.-]+)*)#([^#\s]+)$/.exec(rest);
      const segments = match?.[2]?.split("/") ?? [];
      if (match === null || segments.some((s) => s === "." || s === "..")) {
        return { problem: "has a `vault` reference that is not of the form ${vault:mount/path#field}" };
      }
      return { provider, mount: match[1]!, path: match[2]!, field: match[3]!, text: whole };
    }
    default:
      return { problem: "has a reference to an unknown provider; known are env, file and vault" };
  }
}

/** Whether the text holds anything that looks like a reference: in a field that takes none, that is a mistake. */
export const looksLikeReference = (text: string): boolean => /\$\{[a-z]+:/.test(text);
