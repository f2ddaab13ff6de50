// Builds the page into one folder of hashed files. No plug-in but React's: what is not in package.json is not in the bundle.
import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [react()],
  // The tools in the repository's root bring an older React: the page must hold exactly one.
  resolve: { dedupe: ["react", "react-dom"] },
  build: {
    target: "es2022",
    sourcemap: false,
    // Everything comes from the control plane itself; nothing is inlined as data: but small images.
    assetsInlineLimit: 2048,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 1024,
  },
});
