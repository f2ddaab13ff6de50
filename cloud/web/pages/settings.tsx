// Settings of the person who is signed in: API tokens, password, theme.
import { Button, Modal, PasswordInput, Select, Skeleton, TextInput } from "@mantine/core";
import { IconKey, IconPlus } from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { useState } from "react";
import { api } from "../api/client.ts";
import { meQuery, tokensQuery } from "../api/queries.ts";
import type { ApiToken, MadeToken } from "../api/types.ts";
import { Confirm } from "../parts/confirm.tsx";
import { CopyLine } from "../parts/copy.tsx";
import { formatTime } from "../parts/format.ts";
import { Empty, Note, ProblemNote } from "../parts/notes.tsx";
import { PageHead, Tabs } from "../parts/page.tsx";
import { Ago, useNow } from "../parts/time.tsx";
import { ThemeChoice } from "../shell/theme-choice.tsx";
import { toast } from "../shell/toasts.tsx";

export function Settings() {
  const search = useSearch({ from: "/frame/settings" });
  const navigate = useNavigate({ from: "/settings" });
  const tab = search.tab ?? "tokens";
  return (
    <>
      <PageHead title="Settings" />
      <Tabs
        label="Settings"
        value={tab}
        onChange={(next) => void navigate({ search: next === "tokens" ? {} : { tab: next }, replace: true })}
        tabs={[
          { value: "tokens", word: "API tokens" },
          { value: "account", word: "Account" },
          { value: "look", word: "Appearance" },
        ]}
      />
      <div className="body">
        <div className="narrow">{tab === "account" ? <Account /> : tab === "look" ? <Look /> : <Tokens />}</div>
      </div>
    </>
  );
}

function Tokens() {
  const client = useQueryClient();
  const tokens = useQuery(tokensQuery);
  const now = useNow();
  const [make, setMake] = useState(false);
  const [revoke, setRevoke] = useState<ApiToken | null>(null);
  const all = tokens.data ?? [];
  const live = all.filter((token) => token.revokedAt === null && token.expiresAt > now);
  const dead = all.filter((token) => !live.includes(token));
  const rows = [...live, ...dead];
  return (
    <>
      <div className="row between" style={{ marginBottom: 12, alignItems: "flex-start" }}>
        <p className="dim" style={{ margin: 0, maxWidth: 560 }}>
          For the <span className="mono">sallyport</span> command and for scripts. A token may do all that you may; it
          is stored as a hash and shown only once.
        </p>
        <Button leftSection={<IconPlus size={14} />} onClick={() => setMake(true)}>
          New token
        </Button>
      </div>
      {tokens.error && <ProblemNote error={tokens.error} onRetry={() => void tokens.refetch()} />}
      <div className="card">
        {tokens.isPending ? (
          <div style={{ padding: 14 }}>
            <Skeleton height={60} />
          </div>
        ) : rows.length === 0 ? (
          <Empty icon={IconKey} title="No tokens yet">
            Make one to sign in with the command line: <span className="mono">sallyport login</span>.
          </Empty>
        ) : (
          <table className="plain-table">
            <thead>
              <tr>
                <th>Label</th>
                <th>Begins with</th>
                <th>Made</th>
                <th>Last used</th>
                <th>Expires</th>
                <th />
              </tr>
            </thead>
            <tbody>
              {rows.map((token) => {
                const gone = token.revokedAt !== null || token.expiresAt <= now;
                return (
                  <tr key={token.id} style={gone ? { color: "var(--text-3)" } : undefined}>
                    <td style={{ fontWeight: 550 }}>{token.label}</td>
                    <td className="mono">{token.hint}…</td>
                    <td className="nowrap">
                      <Ago at={token.createdAt} />
                    </td>
                    <td className="nowrap">
                      <Ago at={token.lastUsedAt} />
                    </td>
                    <td className="nowrap">
                      {token.revokedAt !== null ? (
                        <span title={formatTime(token.revokedAt)}>revoked</span>
                      ) : token.expiresAt <= now ? (
                        "expired"
                      ) : (
                        <Ago at={token.expiresAt} />
                      )}
                    </td>
                    <td className="right">
                      {!gone && (
                        <Button variant="default" size="compact-xs" onClick={() => setRevoke(token)}>
                          Revoke
                        </Button>
                      )}
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        )}
      </div>
      {make && <NewToken onClose={() => setMake(false)} />}
      <Confirm
        opened={revoke !== null}
        onClose={() => setRevoke(null)}
        title={`Revoke ${revoke?.label ?? ""}?`}
        verb="Revoke the token"
        act={async () => {
          await api.delete(`/v1/tokens/${revoke!.id}`);
          await client.invalidateQueries({ queryKey: ["tokens"] });
        }}
      >
        Whatever uses it is refused from now on. This cannot be undone; a new token can be made.
      </Confirm>
    </>
  );
}

function NewToken({ onClose }: { onClose: () => void }) {
  const client = useQueryClient();
  const [label, setLabel] = useState("");
  const [days, setDays] = useState("30");
  const [made, setMade] = useState<MadeToken | null>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const create = async () => {
    setBusy(true);
    setError(null);
    try {
      setMade(await api.post<MadeToken>("/v1/tokens", { label: label.trim(), expiresInDays: Number(days) }));
      await client.invalidateQueries({ queryKey: ["tokens"] });
    } catch (caught) {
      setError(caught);
    } finally {
      setBusy(false);
    }
  };
  return (
    <Modal
      opened
      onClose={onClose}
      closeOnClickOutside={made === null}
      title={<b>{made ? "The token" : "New API token"}</b>}
      size={500}
    >
      {made ? (
        <div className="stack">
          <Note tone="ok" icon={IconKey} title="Copy it now: it is not shown again.">
            It is called {made.label} and works until {formatTime(made.expiresAt)}.
          </Note>
          <CopyLine text={made.token} label="Copy the token" />
          <div className="row" style={{ justifyContent: "flex-end" }}>
            <Button onClick={onClose}>Done</Button>
          </div>
        </div>
      ) : (
        <form
          className="stack"
          onSubmit={(event) => {
            event.preventDefault();
            void create();
          }}
        >
          <TextInput
            size="sm"
            label="Label"
            placeholder="laptop"
            description="To recognise it by"
            value={label}
            onChange={(event) => setLabel(event.currentTarget.value)}
            data-autofocus
            maxLength={100}
          />
          <Select
            size="sm"
            label="Works for"
            allowDeselect={false}
            value={days}
            onChange={(value) => setDays(value ?? "30")}
            data={[
              { value: "1", label: "1 day" },
              { value: "7", label: "7 days" },
              { value: "30", label: "30 days" },
              { value: "90", label: "90 days" },
            ]}
          />
          {error !== null && <ProblemNote error={error} />}
          <div className="row" style={{ justifyContent: "flex-end" }}>
            <Button variant="default" onClick={onClose}>
              Close
            </Button>
            <Button type="submit" loading={busy} disabled={label.trim() === ""}>
              Make the token
            </Button>
          </div>
        </form>
      )}
    </Modal>
  );
}

const MIN_PASSWORD = 12;
function Account() {
  const client = useQueryClient();
  const me = useQuery(meQuery).data;
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const save = async () => {
    setBusy(true);
    setError(null);
    try {
      await api.put("/v1/me/password", { password });
      await client.invalidateQueries({ queryKey: ["me"] });
      setPassword("");
      setAgain("");
      toast("The password was set.");
    } catch (caught) {
      setError(caught);
    } finally {
      setBusy(false);
    }
  };
  const short = password !== "" && password.length < MIN_PASSWORD;
  const differs = again !== "" && again !== password;
  return (
    <div className="stack" style={{ gap: 16 }}>
      <section className="card">
        <div className="card-head">
          <h2>You</h2>
        </div>
        <div className="card-body">
          <dl className="facts">
            <dt>Name</dt>
            <dd>{me?.user.name}</dd>
            <dt>Role</dt>
            <dd>{me?.user.role}</dd>
            <dt>Workspace</dt>
            <dd>{me?.workspace.name}</dd>
            <dt>Signed in by</dt>
            <dd>{me?.via}</dd>
            <dt>Version</dt>
            <dd className="num">{me?.version}</dd>
          </dl>
        </div>
      </section>
      <section className="card">
        <div className="card-head">
          <h2>Password</h2>
          {me && <span className="tag">{me.hasPassword ? "set" : "not set: only one-time links work"}</span>}
        </div>
        <form
          className="card-body stack"
          style={{ maxWidth: 380 }}
          onSubmit={(event) => {
            event.preventDefault();
            if (!short && !differs && password === again) void save();
          }}
        >
          <input type="text" name="username" autoComplete="username" value={me?.user.name ?? ""} readOnly hidden />
          <PasswordInput
            label="New password"
            autoComplete="new-password"
            value={password}
            onChange={(event) => setPassword(event.currentTarget.value)}
            error={short && `At least ${MIN_PASSWORD} characters`}
            description={short ? undefined : `At least ${MIN_PASSWORD} characters`}
            visibilityToggleButtonProps={{ "aria-label": "Show the password" }}
          />
          <PasswordInput
            label="Once more"
            autoComplete="new-password"
            value={again}
            onChange={(event) => setAgain(event.currentTarget.value)}
            error={differs && "The two differ"}
            visibilityToggleButtonProps={{ "aria-label": "Show the password" }}
          />
          {error !== null && <ProblemNote error={error} />}
          <div>
            <Button type="submit" loading={busy} disabled={password === "" || short || password !== again}>
              {me?.hasPassword ? "Change the password" : "Set the password"}
            </Button>
          </div>
        </form>
      </section>
    </div>
  );
}

function Look() {
  return (
    <section className="card">
      <div className="card-head">
        <h2>Theme</h2>
      </div>
      <div className="card-body stack">
        <div style={{ maxWidth: 320 }}>
          <ThemeChoice />
        </div>
        <div className="dim">System follows what your computer is set to, also when it changes.</div>
      </div>
    </section>
  );
}
