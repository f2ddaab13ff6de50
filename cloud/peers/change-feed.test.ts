// Changes of several processes heard at one: all of them, each once, in order, whatever order and notes they came in.
import t from "tap";
import { systemClock, type WorkspaceId } from "@sallyport/protocol";
import pino from "pino";
import { inProcessBackplane, type Hub } from "../backplane/index.ts";
import { storePlace } from "../../test/support/store.ts";
import { waitFor } from "../../test/support/launcher.ts";
import type { ChangeRow, Store } from "../store/index.ts";
import { changeFeed } from "./change-feed.ts";

t.test("numbers that were committed elsewhere are read before what was committed here is told", async (t) => {
  const store = await (await storePlace(t)).open();
  t.teardown(() => store.close());
  const user = await store.ensureAdmin("admin", "default");
  const scope = { workspace: user.workspace, actor: { id: user.id, name: user.name, via: "session" as const } };
  const hub: Hub = new Set();
  const [mine, others] = [inProcessBackplane(hub), inProcessBackplane(hub)];
  // What this process's own store tells it: every other commit is one of another process, which is not told here.
  let deaf = false;
  const here: Store = {
    ...store,
    onChange: (listener) => store.onChange((workspace, changes) => void (deaf || listener(workspace, changes))),
  };
  const feed = changeFeed({
    store: here,
    backplane: mine,
    clock: systemClock,
    log: pino({ level: "silent" }),
    onGap() {},
  });
  const heard: ChangeRow[] = [];
  feed.onChange((workspace: WorkspaceId, changes) => void (workspace === user.workspace && heard.push(...changes)));
  const from = (await store.changesAfter(user.workspace, Number.MAX_SAFE_INTEGER, 1)).newest;
  await feed.start();
  t.teardown(() => feed.stop());

  for (let n = 0; n < 60; n++) {
    deaf = n % 3 !== 0;
    await store.ensurePool(scope, `pool-${n}`, 1);
    // Half of the notes are lost.
    if (deaf && n % 2 === 0) others.announce({ type: "changed", workspace: user.workspace });
  }
  deaf = false;
  await store.ensurePool(scope, "last", 1);
  const all = (await store.changesAfter(user.workspace, from, 500)).items;
  await waitFor("the last", () => heard.at(-1)?.n === all.at(-1)!.n);
  t.same(heard, all);

  // No note and no commit of one's own: the sweep.
  deaf = true;
  await store.ensurePool(scope, "swept", 1);
  await waitFor("the sweep", () => heard.length === all.length + 1);

  await store.ensurePool(scope, "asked for", 1);
  await feed.catchUp();
  t.equal(heard.length, all.length + 2, "told before it resolves");
  await Promise.all([mine.close(), others.close()]);
});
