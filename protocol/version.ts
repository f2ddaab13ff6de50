// The one number both ends compare. It rises with every change that the other end could observe.
//
// 1  2026-11-21  first: hello with pinned identity, two limits, intent and dispatch, numbered reports

/** Newest protocol this build speaks. */
export const PROTOCOL_VERSION = 1;
/** Oldest protocol this build still speaks. */
export const PROTOCOL_MIN = 1;
