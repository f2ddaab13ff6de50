// One behaviour, both forms: notes reach the others and not oneself, what is no note is not heard, and a server that goes
// away is said, dialled again, and never waited for.
import t, { type Test } from "tap";
import { systemClock } from "@sallyport/protocol";
import { waitFor } from "../../test/support/launcher.ts";
import { startNats } from "../../test/support/nats.ts";
import { needs } from "../../test/support/skip.ts";
import { connectNats, natsAccess } from "../nats/index.ts";
import { inProcessBackplane, natsBackplane, sweepBackplane, type Backplane, type Hub, type Note } from "./index.ts";

const replica = `rep_${"0".repeat(31)}1`;
const note = { type: "presence", replica } as Note;

async function suite(t: Test, make: (process: string) => Backplane): Promise<void> {
  const [a, b, c] = ["a", "b", "c"].map(make) as [Backplane, Backplane, Backplane];
  const heard: string[] = [];
  for (const [name, one] of Object.entries({ a, b, c })) one.onNote((told) => heard.push(`${name} ${told.type}`));
  await waitFor("all to be connected", () => [a, b, c].every((one) => one.health.connected));
  await waitFor("notes to arrive", async () => {
    a.announce(note);
    return heard.includes("b presence") && heard.includes("c presence");
  });
  t.notOk(heard.includes("a presence"), "not one's own");
  await b.close();
  heard.length = 0;
  await waitFor("the other to hear it", async () => {
    a.announce({ type: "processes" });
    return heard.includes("c processes");
  });
  t.notOk(
    heard.some((one) => one.startsWith("b ")),
    "who left hears nothing",
  );
  b.announce(note);
  await Promise.all([a.close(), c.close()]);
}

t.test("in process", async (t) => {
  const hub: Hub = new Set();
  await suite(t, () => inProcessBackplane(hub));
  t.equal(hub.size, 0);
  const alone = inProcessBackplane();
  alone.announce(note);
  t.match(alone.health, { kind: "alone", connected: true });
  t.match(sweepBackplane().health, { kind: "sweep", connected: false });
});

t.test("over NATS", { skip: needs("nats"), timeout: 120_000 }, async (t) => {
  const server = await startNats(t);
  const access = natsAccess(server.url.replace("://", `://${server.user}:${server.password}@`), {
    ca: null,
    creds: null,
  });
  const make = (process: string, incarnation = "one") =>
    natsBackplane({ access, incarnation, process, clock: systemClock });
  await suite(t, (process) => make(process));

  await t.test("of another control plane, and of nobody: not heard", async (t) => {
    const [mine, foreign, stranger] = [make("a"), make("b", "two"), await connectNats(access, "stranger")];
    const heard: Note[] = [];
    mine.onNote((told) => heard.push(told));
    await waitFor("both", () => mine.health.connected && foreign.health.connected);
    foreign.announce(note);
    for (const text of ["", "{", "null", "[]", '{"note":{"type":"nothing"}}', `{"note":"${"x".repeat(9000)}"}`])
      stranger.publish("sallyport.one.note", text);
    stranger.publish("sallyport.one.note", JSON.stringify({ from: "x", note: { type: "processes" } }));
    await waitFor("the one that is a note", () => heard.length > 0);
    t.same(heard, [{ type: "processes" }]);
    await Promise.all([mine.close(), foreign.close(), stranger.close()]);
  });

  await t.test("the server goes away and comes back", async (t) => {
    const [a, b] = [make("a"), make("b")];
    const said: boolean[] = [];
    a.onHealth((health) => said.push(health.connected));
    let heard = 0;
    b.onNote(() => heard++);
    await waitFor("both", () => a.health.connected && b.health.connected);
    await server.stop();
    await waitFor("it to be noticed", () => !a.health.connected && !b.health.connected);
    t.match(a.health.text, /not reached/);
    t.notMatch(a.health.text, server.password);
    a.announce(note);
    await server.resume();
    await waitFor("both again", () => a.health.connected && b.health.connected);
    t.equal(heard, 0, "what was said meanwhile is lost");
    await waitFor("notes to arrive", () => {
      a.announce(note);
      return heard > 0;
    });
    t.same(said, [true, false, true]);
    await Promise.all([a.close(), b.close()]);
  });
});
