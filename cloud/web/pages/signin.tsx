// Signing in: by the one-time link (its secret is behind the `#`, so it is never sent as part of an address), or by password.
import { Button, Loader, PasswordInput, TextInput } from "@mantine/core";
import { useQueryClient } from "@tanstack/react-query";
import { useNavigate } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import { api } from "../api/client.ts";
import type { Me } from "../api/types.ts";
import { ProblemNote } from "../parts/notes.tsx";
import { Mark } from "../shell/mark.tsx";

/** Only a path of this very page: never another origin. */
function backTo(): string {
  const back = new URLSearchParams(location.search).get("back") ?? "/";
  return /^\/(?![/\\])/.test(back) ? back : "/";
}

export function SignIn() {
  const navigate = useNavigate();
  const client = useQueryClient();
  const [busy, setBusy] = useState(false);
  const [byLink, setByLink] = useState(location.hash.length > 1);
  const [error, setError] = useState<unknown>(null);
  const [name, setName] = useState("");
  const [password, setPassword] = useState("");
  const used = useRef(false);

  const enter = async (body: { signin: string } | { name: string; password: string }) => {
    setBusy(true);
    setError(null);
    try {
      const me = await api.post<Me>("/v1/session", body);
      client.clear();
      if (me) client.setQueryData(["me"], me);
      await navigate({ href: backTo(), replace: true });
    } catch (caught) {
      setError(caught);
    } finally {
      setBusy(false);
      setByLink(false);
    }
  };

  useEffect(() => {
    document.title = "Sign in · Sallyport";
    const secret = location.hash.slice(1);
    // The secret works once: a second run of this effect must not spend it again, nor may it stay in the history.
    if (secret === "" || used.current) return;
    used.current = true;
    history.replaceState(history.state, "", location.pathname + location.search);
    void enter({ signin: decodeURIComponent(secret) });
    // oxlint-disable-next-line react/exhaustive-deps -- once, at arrival
  }, []);

  return (
    <div className="sign">
      <div className="card">
        <div className="row" style={{ gap: 10, marginBottom: 18 }}>
          <Mark size={28} />
          <span style={{ fontSize: 16, fontWeight: 650, letterSpacing: "-0.01em" }}>Sallyport</span>
        </div>
        {byLink ? (
          <div className="row" style={{ padding: "18px 0" }} role="status">
            <Loader size={16} /> Signing in with your one-time link…
          </div>
        ) : (
          <form
            className="stack"
            style={{ gap: 14 }}
            onSubmit={(event) => {
              event.preventDefault();
              void enter({ name, password });
            }}
          >
            {error !== null && <ProblemNote error={error} />}
            <TextInput
              size="sm"
              label="Name"
              name="name"
              autoComplete="username"
              required
              withAsterisk={false}
              value={name}
              onChange={(event) => setName(event.currentTarget.value)}
              autoFocus
            />
            <PasswordInput
              size="sm"
              label="Password"
              name="password"
              autoComplete="current-password"
              required
              withAsterisk={false}
              value={password}
              onChange={(event) => setPassword(event.currentTarget.value)}
              visibilityToggleButtonProps={{ "aria-label": "Show the password" }}
            />
            <Button type="submit" size="sm" loading={busy} fullWidth>
              Sign in
            </Button>
            <p className="faint small" style={{ margin: "4px 0 0" }}>
              No password yet? Use the one-time link that the control plane printed when it started, or make a new one
              on its host with <span className="mono">sallyport-cloud admin reset</span>.
            </p>
          </form>
        )}
      </div>
    </div>
  );
}
