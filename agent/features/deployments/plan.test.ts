// The plan against a small world that does what it is told, and much that it is not told.
import fc from "fast-check";
import t from "tap";
import { plan, type Seat } from "./plan.ts";

/** One deployment's world. A revision whose number is divisible by 3 never comes up. */
class World {
  wanted: number;
  revision = 1;
  serving: number | null = null;
  seats = new Map<string, Seat>();
  now = 0;
  capacity: number;
  engineGone = false;
  /** Names that run; what the engine would say. */
  running = new Set<string>();
  faults: string[] = [];

  constructor(wanted: number, capacity: number) {
    this.wanted = wanted;
    this.capacity = capacity;
  }
  get serves(): number {
    return [...this.seats.values()].filter((s) => s.phase === "ready" && s.routed).length;
  }
  round(): boolean {
    const seats = [...this.seats.values()];
    const room = this.capacity - seats.length;
    const before = this.serves;
    const oldSeats = seats.filter((s) => s.revision !== this.revision).length;
    const made = plan({
      wanted: this.wanted,
      revision: this.revision,
      serving: this.serving,
      seats,
      now: this.now,
      room,
    });
    for (const action of made.actions) {
      const name = `r${action.revision}.${action.number}`;
      const seat = this.seats.get(name);
      switch (action.do) {
        case "start":
          if (this.running.has(name)) this.faults.push(`${name} started twice`);
          if (seat === undefined && this.seats.size >= this.wanted + 1) this.faults.push("more than wanted + 1");
          if (seat === undefined && this.seats.size >= this.capacity) this.faults.push("more than there is room");
          if (seat !== undefined && (seat.phase !== "down" || (seat.retryAt ?? 0) > this.now))
            this.faults.push(`${name} started out of turn`);
          if (this.engineGone) {
            this.seats.set(name, { ...(seat ?? fresh(action)), phase: "down", retryAt: this.now + 2 });
            break;
          }
          this.running.add(name);
          this.seats.set(name, { ...(seat ?? fresh(action)), phase: "starting", retryAt: null, settled: true });
          break;
        case "route":
          if (seat!.phase !== "ready" && seat!.phase !== "draining")
            this.faults.push(`${name} routed while ${seat!.phase}`);
          this.seats.set(name, { ...seat!, phase: "ready", routed: true, drained: false });
          break;
        case "unroute":
          this.seats.set(name, { ...seat!, routed: false });
          break;
        case "drain":
          this.seats.set(name, { ...seat!, phase: "draining", routed: false });
          break;
        case "stop":
          if (seat!.routed && seat!.phase === "ready") this.faults.push(`${name} stopped while it serves`);
          if (!seat!.settled) this.faults.push(`${name} stopped before it was heard of`);
          this.seats.set(name, { ...seat!, phase: "stopping", routed: false });
          break;
        case "forget":
          if (this.running.has(name)) this.faults.push(`${name} forgotten while it runs`);
          this.seats.delete(name);
      }
    }
    // Draining takes away only what is too many.
    if (this.serves < Math.min(before, this.wanted))
      this.faults.push(
        `serving fell from ${before} to ${this.serves} of ${this.wanted} by the plan alone (${oldSeats} old)`,
      );
    if (made.complete) this.serving = this.revision;
    return made.actions.length > 0;
  }
  /** What would happen by itself. */
  pass(): boolean {
    let moved = false;
    for (const [name, seat] of this.seats) {
      const becomes = (next: Partial<Seat>): void => {
        moved = true;
        this.seats.set(name, { ...seat, ...next });
      };
      if (!seat.settled) becomes({ settled: true });
      else if (seat.phase === "starting" && seat.revision % 3 === 0) {
        this.crash(name);
        moved = true;
      } else if (seat.phase === "starting" || seat.phase === "unready") becomes({ phase: "ready", crashes: 0 });
      else if (seat.phase === "draining" && !seat.drained) becomes({ drained: true });
      else if (seat.phase === "stopping") {
        this.running.delete(name);
        this.seats.delete(name);
        moved = true;
      }
    }
    return moved;
  }
  crash(name: string): void {
    const seat = this.seats.get(name);
    if (seat === undefined || !this.running.has(name)) return;
    this.running.delete(name);
    if (seat.phase === "stopping") this.seats.delete(name);
    else
      this.seats.set(name, {
        ...seat,
        phase: "down",
        routed: false,
        drained: false,
        settled: true,
        crashes: seat.crashes + 1,
        retryAt: this.now + 1 + seat.crashes,
      });
  }
  /** The agent was killed: it knows what runs, not how it is. */
  restart(): void {
    for (const [name, seat] of this.seats)
      this.seats.set(name, {
        ...seat,
        phase: this.running.has(name) ? "starting" : "down",
        routed: false,
        drained: false,
        settled: !this.running.has(name),
      });
  }
}
const fresh = (at: { revision: number; number: number }): Seat => ({
  revision: at.revision,
  number: at.number,
  phase: "down",
  routed: false,
  drained: false,
  settled: true,
  retryAt: null,
  crashes: 0,
});

type Event =
  | { kind: "scale"; to: number }
  | { kind: "apply"; good: boolean }
  | { kind: "crash" | "unready"; which: number }
  | { kind: "room"; to: number }
  | { kind: "engine" | "restart" | "pass" | "round" };
const event: fc.Arbitrary<Event> = fc.oneof(
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("scale" as const), to: fc.nat(4) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("apply" as const), good: fc.boolean() }) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constantFrom("crash" as const, "unready" as const), which: fc.nat(6) }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("room" as const), to: fc.nat(7) }) },
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constantFrom(
        "pass" as const,
        "round" as const,
        "pass" as const,
        "round" as const,
        "engine" as const,
        "restart" as const,
      ),
    }),
  },
);

function happen(world: World, what: Event): void {
  switch (what.kind) {
    case "scale":
      world.wanted = what.to;
      break;
    case "apply":
      do world.revision++;
      while ((world.revision % 3 !== 0) !== what.good);
      break;
    case "crash":
      world.crash([...world.running][what.which] ?? "");
      break;
    case "unready": {
      const name = [...world.running][what.which] ?? "";
      const seat = world.seats.get(name);
      if (seat?.phase === "ready") world.seats.set(name, { ...seat, phase: "unready" });
      break;
    }
    case "room":
      world.capacity = what.to;
      break;
    case "engine":
      world.engineGone = !world.engineGone;
      break;
    case "restart":
      world.restart();
      break;
    case "pass":
      world.now++;
      world.pass();
      break;
    case "round":
      world.round();
  }
}

t.test(
  "whatever happens: at most one more than wanted, nothing twice, nothing that serves is taken away, and it converges",
  async (t) => {
    fc.assert(
      fc.property(fc.nat(3), fc.array(event, { maxLength: 60 }), (wanted, events) => {
        const world = new World(wanted, 6);
        for (const what of events) {
          happen(world, what);
          if (world.faults.length > 0) throw new Error(world.faults.join("; "));
        }
        // Peace: room, an engine, a revision that can be.
        world.capacity = 10;
        world.engineGone = false;
        if (world.revision % 3 === 0) world.revision++;
        for (let i = 0; i < 200; i++) {
          world.now++;
          world.round();
          world.pass();
          if (world.faults.length > 0) throw new Error(world.faults.join("; "));
        }
        const names = [...world.seats.keys()].sort();
        const ideal = Array.from({ length: world.wanted }, (_, i) => `r${world.revision}.${i}`);
        if (JSON.stringify(names) !== JSON.stringify(ideal) || world.serves !== world.wanted)
          throw new Error(`no convergence: ${JSON.stringify([...world.seats.values()])}, wanted ${ideal.join()}`);
      }),
      { numRuns: 3000 },
    );
    t.pass();
  },
);

t.test("a revision that does not come up: the old one serves, also when one of its replicas is killed", async (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 4 }), fc.array(fc.nat(5), { maxLength: 20 }), (wanted, kills) => {
      const world = new World(wanted, 10);
      const settle = (rounds: number): void => {
        for (let i = 0; i < rounds; i++) {
          world.now++;
          world.round();
          world.pass();
        }
      };
      settle(20);
      if (world.serving !== 1) throw new Error("revision 1 never came up");
      world.revision = 3;
      for (const which of kills) {
        world.crash([...world.running].filter((name) => name.startsWith("r1."))[which] ?? "");
        settle(3);
      }
      settle(30);
      const old = [...world.seats.values()].filter((s) => s.revision === 1 && s.phase === "ready" && s.routed);
      if (old.length !== wanted) throw new Error(`${old.length} of ${wanted} serve`);
      if (world.faults.length > 0) throw new Error(world.faults.join("; "));
    }),
    { numRuns: 500 },
  );
  t.pass();
});

t.test("an old seat without hope goes when the new one has no room", async (t) => {
  const world = new World(1, 1);
  const fiveRounds = (): void => {
    for (let i = 0; i < 5; i++) {
      world.round();
      world.pass();
      world.now++;
    }
  };
  fiveRounds();
  t.equal(world.serving, 1);
  world.revision = 2;
  fiveRounds();
  t.same([...world.seats.keys()], ["r1.0"], "it serves: it stays");
  world.seats.set("r1.0", { ...world.seats.get("r1.0")!, phase: "down", routed: false, crashes: 3, retryAt: 1000 });
  world.running.clear();
  fiveRounds();
  t.same([...world.seats.keys()], ["r2.0"]);
});
