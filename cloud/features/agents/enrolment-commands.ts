// The lines that a person copies to enrol an agent. The only place that writes them.

/** For a POSIX shell: between single quotes nothing is special but the quote itself. */
const quote = (text: string): string =>
  /^[A-Za-z0-9_./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;

/**
 * `url` is what the agent dials, `secret` the enrolment secret. The secret is needed at the first start only: after it
 * the agent's state directory is enough. The leading space keeps the line out of the history of common shells.
 */
export function enrolmentCommands(url: string, secret: string): { title: string; text: string }[] {
  const environment = ` SALLYPORT_URL=${quote(url)} SALLYPORT_ENROLL_SECRET=${quote(secret)}`;
  return [
    { title: "Installed agent", text: `${environment} sallyport-agent run --config agent.yaml` },
    {
      title: "From a checkout of the repository",
      text: `${environment} node agent/bin/sallyport-agent.mjs run --config agent.yaml`,
    },
  ];
}
