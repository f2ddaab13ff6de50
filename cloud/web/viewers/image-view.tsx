// A picture on a checkered ground, fitted or at a zoom that the reader sets.
import { ActionIcon, Button, Tooltip } from "@mantine/core";
import { IconZoomIn, IconZoomOut } from "@tabler/icons-react";
import { useState } from "react";
import type { PreviewOf } from "../api/types.ts";

const STEPS = [0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16];
/** Pictures this small are data: pixels stay pixels. */
const SMALL_PX = 96;

export function ImageView({ image, name }: { image: PreviewOf<"image">; name: string }) {
  const [zoom, setZoom] = useState<number | null>(null);
  const step = (by: 1 | -1) => {
    const from = zoom ?? 1;
    const next = by === 1 ? STEPS.find((each) => each > from) : STEPS.findLast((each) => each < from);
    if (next !== undefined) setZoom(next);
  };
  const small = (image.width ?? 1000) <= SMALL_PX && (image.height ?? 1000) <= SMALL_PX;
  const style: React.CSSProperties =
    zoom === null
      ? {
          maxWidth: "100%",
          maxHeight: "100%",
          objectFit: "contain",
          ...(small && image.width ? { width: image.width * 4 } : {}),
        }
      : image.width
        ? { width: image.width * zoom, maxWidth: "none" }
        : { zoom };
  return (
    <>
      <div className="logbar" style={{ justifyContent: "flex-end" }}>
        <Tooltip label="Smaller">
          <ActionIcon aria-label="Smaller" onClick={() => step(-1)}>
            <IconZoomOut size={16} />
          </ActionIcon>
        </Tooltip>
        {zoom !== null && (
          <span className="num small dim" style={{ width: 44, textAlign: "center" }}>
            {Math.round(zoom * 100)} %
          </span>
        )}
        <Tooltip label="Larger">
          <ActionIcon aria-label="Larger" onClick={() => step(1)}>
            <IconZoomIn size={16} />
          </ActionIcon>
        </Tooltip>
        <Button variant="default" size="compact-xs" onClick={() => setZoom(null)} disabled={zoom === null}>
          Fit
        </Button>
        <Button variant="default" size="compact-xs" onClick={() => setZoom(1)} disabled={zoom === 1}>
          100 %
        </Button>
      </div>
      <div className="img-stage" tabIndex={0} role="region" aria-label={`Picture ${name}`}>
        <img
          src={`data:${image.mediaType};base64,${image.data}`}
          alt={name}
          style={{ ...style, imageRendering: small || (zoom ?? 1) > 2 ? "pixelated" : "auto" }}
        />
      </div>
    </>
  );
}
