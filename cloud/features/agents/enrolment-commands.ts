// The lines that a person copies to enrol an agent. The only place that writes them.

/** For a POSIX shell: between single quotes nothing is special but the quote itself. */
const quote = (text: string): string =>
  /^[A-Za-z0-9_./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;

const SOCKET = "/var/run/docker.sock";

/** `note`: what must be known before it is run. */
export interface EnrolmentCommand {
  title: string;
  text: string;
  note?: string;
}

/**
 * `url` is what the agent dials, `secret` the enrolment secret, `image` the agent's image by the name that its machine
 * knows. The secret is needed at the first start only: after it the agent's state directory is enough. The leading space
 * keeps the line out of the history of common shells.
 */
export function enrolmentCommands(url: string, secret: string, image: string): EnrolmentCommand[] {
  const environment = ` SALLYPORT_URL=${quote(url)} SALLYPORT_ENROLL_SECRET=${quote(secret)}`;
  // By --mount: without an agent.yaml docker refuses it, where -v would make a folder of that name.
  const dockerRun = (more: string) =>
    ` docker run -d --name sallyport-agent --hostname "$(hostname)" --restart unless-stopped` +
    ` --read-only --cap-drop ALL --security-opt no-new-privileges --tmpfs /tmp` +
    ` -v sallyport-agent:/var/lib/sallyport` +
    ` --mount "type=bind,src=$PWD/agent.yaml,dst=/etc/sallyport/agent.yaml,readonly"` +
    `${more} -e SALLYPORT_URL=${quote(url)} -e SALLYPORT_ENROLL_SECRET=${quote(secret)} ${quote(image)}`;
  return [
    { title: "Installed agent", text: `${environment} sallyport-agent run --config agent.yaml` },
    { title: "Docker", text: dockerRun("") },
    {
      title: "Docker, starts containers",
      note: `It is given the Engine's socket, for steps and replicas in containers. Who can use that socket is root on its machine: run it so only where you would trust the agent as root.`,
      text: dockerRun(` -v ${SOCKET}:${SOCKET} --group-add "$(stat -c %g ${SOCKET})"`),
    },
    {
      title: "From a checkout",
      text: `${environment} node agent/bin/sallyport-agent.mjs run --config agent.yaml`,
    },
  ];
}
