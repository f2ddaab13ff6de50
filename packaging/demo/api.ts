// The API that the page uses, as far as the demo tells its story through it.

export class ApiFailure extends Error {
  readonly status: number;
  readonly code: string;
  constructor(status: number, problem: { code?: string; detail?: string; fix?: string; requestId?: string }) {
    super(
      `${problem.code ?? status}: ${problem.detail ?? "no detail"}${problem.fix === undefined ? "" : ` ${problem.fix}`} (request ${problem.requestId ?? "?"})`,
    );
    this.status = status;
    this.code = problem.code ?? "";
  }
}

export class Api {
  readonly url: string;
  #token: string | null = null;

  constructor(url: string) {
    this.url = url;
  }

  async fetch(
    path: string,
    init: Omit<RequestInit, "headers"> & { headers?: Record<string, string> } = {},
  ): Promise<Response> {
    const response = await fetch(`${this.url}${path}`, {
      ...init,
      headers: { ...init.headers, ...(this.#token === null ? {} : { authorization: `Bearer ${this.#token}` }) },
    });
    if (response.ok) return response;
    const body = await response.text();
    let problem: { code?: string; detail?: string } = { detail: body.slice(0, 500) };
    try {
      problem = JSON.parse(body) as typeof problem;
    } catch {
      // not ours: a proxy's page, say; its text stands
    }
    throw new ApiFailure(response.status, problem);
  }

  async get<T>(path: string): Promise<T> {
    return (await (await this.fetch(path)).json()) as T;
  }

  async post<T>(path: string, body: unknown, headers: Record<string, string> = {}): Promise<T> {
    return (await (
      await this.fetch(path, {
        method: "POST",
        body: JSON.stringify(body),
        headers: { "content-type": "application/json", ...headers },
      })
    ).json()) as T;
  }

  /** Spends a one-time sign-in URL, and makes itself an API token with the session it gives. */
  async signIn(signInUrl: string): Promise<void> {
    const signin = new URL(signInUrl).hash.slice(1);
    const origin = new URL(this.url).origin;
    const session = await this.fetch("/v1/session", {
      method: "POST",
      body: JSON.stringify({ signin }),
      headers: { "content-type": "application/json", origin },
    });
    const cookie = session.headers
      .getSetCookie()
      .map((c) => c.split(";")[0])
      .join("; ");
    const made = await this.post<{ token: string }>(
      "/v1/tokens",
      { label: "demo", expiresInDays: 1 },
      { cookie, origin },
    );
    this.#token = made.token;
  }
}
