// Artifacts as the control plane sees them: bytes that pass through. What HTTP asks for (ranges, preconditions, safe
// headers) as pure functions, and a read that goes on over the next link when one breaks. Nothing is stored here.
// Routes import this; it knows no HTTP framework and no link.
export { openDownload, type Download, type DownloadRequest } from "./download.ts";
export { sendArtifact, type UploadRequest } from "./upload.ts";
export { contentDisposition, safeMediaType } from "./content-headers.ts";
export { etagOfVersion, parseRange, parseTags, reprDigest, tagMatches, type Range } from "./preconditions.ts";
