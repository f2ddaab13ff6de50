// Frames of every released protocol version, as they were once on the wire: they must decode for ever.
import { readFileSync, readdirSync } from "node:fs";
import t from "tap";
import type { z } from "zod";
import { FrameMac, FrameReader, parseControl, parseJson } from "./codec.ts";
import { signatureSchema } from "./envelope.ts";
import {
  FRAME,
  FRAME_NAMES,
  ackSchema,
  creditSchema,
  endSchema,
  failureSchema,
  pingSchema,
  type Frame,
} from "./frames.ts";
import { challengeSchema, helloSchema, proofSchema, readySchema } from "./handshake.ts";

interface Recorded {
  version: number;
  macKey: string;
  frames: { name: string; type: string; maced: boolean; messages: string[] }[];
}

const plain: Record<number, z.ZodType> = {
  [FRAME.hello]: helloSchema,
  [FRAME.ready]: readySchema,
  [FRAME.refuse]: failureSchema,
  [FRAME.credit]: creditSchema,
  [FRAME.ack]: ackSchema,
  [FRAME.end]: endSchema,
  [FRAME.reset]: failureSchema,
  [FRAME.ping]: pingSchema,
  [FRAME.pong]: pingSchema,
  [FRAME.goAway]: failureSchema,
};
const signed: Record<number, z.ZodType> = { [FRAME.challenge]: challengeSchema, [FRAME.proof]: proofSchema };

const folder = new URL("./fixtures/", import.meta.url);
const versions = readdirSync(folder).filter((name) => /^v\d+$/.test(name));
t.ok(versions.length > 0);
for (const version of versions) {
  t.test(version, async (t) => {
    const recorded = JSON.parse(readFileSync(new URL(`${version}/frames.json`, folder), "utf8")) as Recorded;
    const types = new Set<string>();
    for (const one of recorded.frames) {
      const reader = new FrameReader(one.maced ? new FrameMac(Buffer.from(recorded.macKey, "base64")) : null);
      let frame: Frame | null = null;
      for (const message of one.messages) frame = reader.read(Buffer.from(message, "base64"));
      t.equal(frame === null ? null : FRAME_NAMES[frame.type], one.type, one.name);
      if (frame === null) continue;
      types.add(one.type);
      const schema = plain[frame.type];
      const inner = signed[frame.type];
      if (schema !== undefined) t.ok(parseControl(frame, schema), one.name);
      else if (inner !== undefined) {
        const { text, signature } = parseJson(frame) as { text: string; signature: unknown };
        t.ok(signatureSchema.safeParse(signature).success && inner.safeParse(JSON.parse(text)).success, one.name);
      } else if (frame.type === FRAME.open) t.ok(parseJson(frame), one.name);
    }
    t.same([...types].sort(), Object.values(FRAME_NAMES).sort(), "every type is there");
  });
}
