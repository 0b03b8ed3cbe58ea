import { describe, expect, it } from "vitest";
import { applyMachines, applySamples, createFleet } from "./fleet";
import { infoOf, listOf, sampleOf } from "./testing";

const T = Date.parse("2026-11-24T10:00:00Z");

describe("applyMachines", () => {
  it("makes machines with their last sample", () => {
    const fleet = createFleet();
    const since = "2026-11-24T09:48:00Z";
    applyMachines(fleet, listOf(infoOf("a", "hold", { state_since: since, last_sample: sampleOf("a", T) })), true);
    const machine = fleet.byId.get("a");
    expect(machine?.state.value).toBe("hold");
    expect(machine?.sinceMs.value).toBe(Date.parse(since));
    expect(machine?.sampleMs.value).toBe(T);
  });

  it("an empty list means: none, which is not the same as not known yet", () => {
    const fleet = createFleet();
    expect(fleet.machines.value).toBeNull();
    applyMachines(fleet, listOf(), true);
    expect(fleet.machines.value).toEqual([]);
  });

  it("renews the array only when a state or the set changes, and keeps each machine's object", () => {
    const fleet = createFleet();
    applyMachines(fleet, listOf(infoOf("a", "idle"), infoOf("b", "idle")), true);
    const [before, a] = [fleet.machines.value, fleet.byId.get("a")];
    applyMachines(fleet, listOf(infoOf("a", "idle", { edge: "edge-2" }), infoOf("b", "idle")), true);
    expect(fleet.machines.value).toBe(before);
    expect(a?.edge.value).toBe("edge-2");
    applyMachines(fleet, listOf(infoOf("a", "alarm"), infoOf("b", "idle")), true);
    expect(fleet.machines.value).not.toBe(before);
    expect(fleet.byId.get("a")).toBe(a);
  });

  it("forgets machines that a whole list no longer names, but not after a partial one", () => {
    const fleet = createFleet();
    applyMachines(fleet, listOf(infoOf("a", "idle"), infoOf("b", "idle")), true);
    applyMachines(fleet, listOf(infoOf("b", "alarm")), false);
    expect([...fleet.byId.keys()]).toEqual(["a", "b"]);
    applyMachines(fleet, listOf(infoOf("b", "alarm")), true);
    expect([...fleet.byId.keys()]).toEqual(["b"]);
    expect(fleet.machines.value).toHaveLength(1);
  });

  it("a partial list does not pretend to be the whole", () => {
    const fleet = createFleet();
    applyMachines(fleet, listOf(infoOf("a", "idle")), false);
    expect(fleet.machines.value).toBeNull();
  });

  it("shows a word that nobody knows as unknown", () => {
    const fleet = createFleet();
    applyMachines(fleet, listOf(infoOf("a", null), infoOf("b", "warming")), true);
    expect([...fleet.byId.values()].map((machine) => machine.state.value)).toEqual(["unknown", "unknown"]);
  });
});

describe("applySamples", () => {
  it("takes newer samples only and fills the sparkline", () => {
    const fleet = createFleet();
    applyMachines(fleet, listOf(infoOf("a", "running")), true);
    const machine = fleet.byId.get("a");
    applySamples(fleet, [sampleOf("a", T + 1000, { spindle_load_percent: 40 })]);
    applySamples(fleet, [sampleOf("a", T, { spindle_load_percent: 10 }), sampleOf("nobody", T)]);
    expect(machine?.sampleMs.value).toBe(T + 1000);
    expect(machine?.sparkVersion.value).toBe(1);
    expect(machine?.spark.column("spindle_load_percent").mean).toEqual([40]);
  });
});
