// Sets the colour scheme before the first paint, so that nobody who chose dark sees a white flash. No dependencies.
(function () {
  var chosen = null;
  try {
    chosen = localStorage.getItem("sallyport-theme");
  } catch (_) {
    // Storage may be off: then the system decides.
  }
  var dark = chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.setAttribute("data-mantine-color-scheme", dark ? "dark" : "light");
})();
