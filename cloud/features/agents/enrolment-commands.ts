// The lines that a person copies to enrol an agent. The only place that writes them.

/** For a POSIX shell: between single quotes nothing is special but the quote itself. */
const quote = (text: string): string =>
  /^[A-Za-z0-9_./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;

const SOCKET = "/var/run/docker.sock";

/**
 * `url` is what the agent dials, `secret` the enrolment secret, `image` the agent's image by the name that its machine
 * knows. The secret is needed at the first start only: after it the agent's state directory is enough. The leading space
 * keeps the line out of the history of common shells.
 */
export function enrolmentCommands(url: string, secret: string, image: string): { title: string; text: string }[] {
  const environment = ` SALLYPORT_URL=${quote(url)} SALLYPORT_ENROLL_SECRET=${quote(secret)}`;
  // Without `agent.yaml` here docker refuses the mount: an agent without a policy could do nothing.
  const dockerRun = (more: string) =>
    ` docker run -d --name sallyport-agent --restart unless-stopped` +
    ` --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp` +
    ` -v sallyport-agent:/var/lib/sallyport` +
    ` --mount "type=bind,src=$PWD/agent.yaml,dst=/etc/sallyport/agent.yaml,readonly"` +
    `${more} -e SALLYPORT_URL=${quote(url)} -e SALLYPORT_ENROLL_SECRET=${quote(secret)} ${quote(image)}`;
  return [
    { title: "Docker", text: dockerRun("") },
    { title: "Installed agent", text: `${environment} sallyport-agent run --config agent.yaml` },
    {
      title: "From a checkout of the repository",
      text: `${environment} node agent/bin/sallyport-agent.mjs run --config agent.yaml`,
    },
    {
      title: "Docker, with the Engine's socket",
      text:
        `# Who can use the Engine's socket is root on that machine: this gives the agent that power.\n` +
        dockerRun(` -v ${SOCKET}:${SOCKET} --group-add "$(stat -c %g ${SOCKET})"`),
    },
  ];
}
