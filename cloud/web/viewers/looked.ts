// Whether somebody has looked at an artifact in this browser. Reading leaves no row in the control plane, so the check
// list of the home page has only the page's own word for it.
const KEY = "sallyport-looked";

export function rememberLook(): void {
  try {
    localStorage.setItem(KEY, "1");
  } catch {
    // Storage may be off: the list then asks once more.
  }
}

export function hasLooked(): boolean {
  try {
    return localStorage.getItem(KEY) !== null;
  } catch {
    return false;
  }
}
