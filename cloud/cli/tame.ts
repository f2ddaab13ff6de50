// Somebody else's text on our terminal.
/** Control characters of somebody else's text must not move the cursor or ring the bell. */
// oxlint-disable-next-line no-control-regex -- they are what is looked for
export const tame = (text: string): string => text.replace(/[\u0000-\u0008\u000B-\u001F\u007F-\u009F]/g, "\uFFFD");
