// Where kills for lack of memory are counted, in each form that cgroups are mounted in.
import { closeSync, mkdirSync, openSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemClock } from "@sallyport/protocol";
import t from "tap";
import { tempDir } from "../../../test/support/launcher.ts";
import { workName } from "../engine.ts";
import { countIn, memoryKills } from "./memory-kills.ts";
import { ProcessHost } from "./process-host.ts";

t.test("the nearest count that there is", async (t) => {
  const v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
  const v2 = "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n";
  const vmstat = "nr_free_pages 1\noom_kill 101\n";
  const cases: Record<string, [cgroup: string, files: Record<string, string>, file: string, count: number]> = {
    "version 1": [
      "9:name=systemd:/\n4:cpu,memory:/agents/a\n0::/\n",
      { "sys/fs/cgroup/memory/agents/a/memory.oom_control": v1 },
      "sys/fs/cgroup/memory/agents/a/memory.oom_control",
      7,
    ],
    "version 2": [
      "0::/system.slice/agent.service\n",
      { "sys/fs/cgroup/system.slice/agent.service/memory.events.local": v2 },
      "sys/fs/cgroup/system.slice/agent.service/memory.events.local",
      2,
    ],
    "a container with a namespace of its own": [
      "0::/\n",
      { "sys/fs/cgroup/memory.events.local": v2 },
      "sys/fs/cgroup/memory.events.local",
      2,
    ],
    "a container that is told the host's path": [
      "4:memory:/docker/abc\n",
      { "sys/fs/cgroup/memory/memory.oom_control": v1 },
      "sys/fs/cgroup/memory/memory.oom_control",
      7,
    ],
    "a path outside what is mounted": [
      "0::/../../other\n",
      { "sys/fs/cgroup/memory.events.local": v2 },
      "sys/fs/cgroup/memory.events.local",
      2,
    ],
    "the root of version 2, which counts nothing": ["0::/\n", {}, "proc/vmstat", 101],
  };
  for (const [name, [cgroup, files, file, count]] of Object.entries(cases)) {
    const root = tempDir(t, "root");
    for (const [path, text] of Object.entries({ "proc/self/cgroup": cgroup, "proc/vmstat": vmstat, ...files })) {
      mkdirSync(dirname(join(root, path)), { recursive: true });
      writeFileSync(join(root, path), text);
    }
    t.same(memoryKills(root), { file: join(root, file), count }, name);
  }
  t.equal(memoryKills(tempDir(t, "nothing")), null);
  const here = memoryKills();
  t.same(here && countIn(here.file), here, "this machine's can be read again");
});

t.test("one kill explains one end", async (t) => {
  const folder = tempDir(t, "host");
  const file = join(folder, "memory.events.local");
  const killed = (count: number): void => writeFileSync(file, `oom 0\noom_kill ${count}\n`);
  killed(3);
  const host = new ProcessHost(
    join(folder, "work"),
    systemClock,
    () => {},
    () => countIn(file),
  );
  const begin = async (step: string): Promise<() => Promise<string>> => {
    const name = workName("cmd", step, 1);
    const go = join(folder, `${step}.go`);
    const out = join(folder, `${step}.out`);
    closeSync(openSync(out, "a"));
    await host.start({
      name,
      executable: "/bin/sh",
      args: ["-c", `until [ -e "${go}" ]; do sleep 0.02; done; kill -9 $$`],
      env: { PATH: "/usr/bin:/bin" },
      cwd: folder,
      stdout: out,
      stderr: out,
      container: null,
    });
    return async () => {
      writeFileSync(go, "");
      const status = await host.ended(name);
      return `${status?.signal} ${status?.reason}`;
    };
  };
  const [a, b, c] = [await begin("a"), await begin("b"), await begin("c")];
  t.equal(await a(), "SIGKILL exit", "nothing was counted: somebody's signal");
  killed(4);
  t.equal(await b(), "SIGKILL out-of-memory");
  t.equal(await c(), "SIGKILL exit", "that kill was another's");
  const d = await begin("d");
  t.equal(await d(), "SIGKILL exit", "counted before it began");
  const e = await begin("e");
  killed(5);
  t.equal(await e(), "SIGKILL out-of-memory");
});
