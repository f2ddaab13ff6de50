// Entry of the page: styles, providers, router. The page knows the HTTP API and nothing behind it; nobody imports it.
import "./styles/mantine.css";
import "./styles/app.css";
import { MantineProvider } from "@mantine/core";
import { QueryClientProvider } from "@tanstack/react-query";
import { RouterProvider } from "@tanstack/react-router";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { makeQueryClient } from "./api/queries.ts";
import { router } from "./shell/router.tsx";
import { colorSchemeManager, cssVariables, theme } from "./shell/theme.ts";
import { tellUpgrade } from "./shell/upgrade.tsx";

/** The style elements that Mantine and its scroll lock make at run time are allowed by this response's nonce alone. */
const nonce = document.querySelector<HTMLMetaElement>("meta[property=csp-nonce]")?.nonce ?? "";
// The scroll lock of a dialog comes from another library, which knows only this global name.
(globalThis as { __webpack_nonce__?: string }).__webpack_nonce__ = nonce;

const client = makeQueryClient(() => {
  const { pathname, search } = router.state.location;
  if (pathname === "/signin") return;
  const back =
    pathname === "/" ? "" : `?back=${encodeURIComponent(pathname + router.options.stringifySearch!(search))}`;
  location.assign(`/signin${back}`);
});

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <MantineProvider
      theme={theme}
      cssVariablesResolver={cssVariables}
      colorSchemeManager={colorSchemeManager}
      defaultColorScheme="auto"
      getStyleNonce={() => nonce}
    >
      <QueryClientProvider client={client}>
        <RouterProvider router={router} />
      </QueryClientProvider>
    </MantineProvider>
  </StrictMode>,
);
tellUpgrade();
