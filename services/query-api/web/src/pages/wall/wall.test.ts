import { describe, expect, it } from "vitest";
import { sampleOf } from "../../live/testing";
import type { State } from "../../states/states";
import { alarmsOutside, matches, readFilter, toggleState } from "./filter";
import { comparePlaced, countStates, type Placed } from "./order";
import { partsOf } from "./parts";

const hall: Placed[] = (
  [
    ["mill-10", "running"],
    ["mill-2", "running"],
    ["mill-3", "offline"],
    ["mill-4", "alarm"],
    ["lathe-1", "idle"],
    ["mill-5", "hold"],
    ["lathe-2", "alarm"],
    ["mill-6", "unknown"],
  ] satisfies [string, State][]
).map(([id, state]) => ({ id, state }));

it("sorts trouble first, then by name with numbers counted", () => {
  const sorted = hall.toSorted(comparePlaced).map(({ id }) => id);
  expect(sorted).toEqual(["lathe-2", "mill-4", "mill-5", "mill-3", "mill-6", "lathe-1", "mill-2", "mill-10"]);
});

it("counts machines per state", () => {
  expect(countStates(hall)).toEqual(
    new Map([
      ["running", 2],
      ["offline", 1],
      ["alarm", 2],
      ["idle", 1],
      ["hold", 1],
      ["unknown", 1],
    ]),
  );
});

describe("filter", () => {
  it.each([
    [null, null, 8],
    ["running", null, 2],
    ["alarm,hold", null, 3],
    ["nonsense", null, 8],
    [null, " LATHE ", 2],
    ["alarm", "mill", 1],
  ])("state=%s q=%s leaves %d", (state, q, count) => {
    const filter = readFilter(state, q);
    expect(hall.filter((machine) => matches(filter, machine))).toHaveLength(count);
  });

  it.each([
    [null, null, 0],
    ["running", null, 2],
    ["alarm", "mill", 1],
    ["alarm", null, 0],
  ])("state=%s q=%s hides %d alarms", (state, q, count) => {
    expect(alarmsOutside(readFilter(state, q), hall)).toBe(count);
  });

  it("switches states on and off in a fixed order", () => {
    expect(toggleState([], "alarm")).toBe("alarm");
    expect(toggleState(["alarm"], "running")).toBe("running,alarm");
    expect(toggleState(["alarm"], "alarm")).toBeNull();
  });
});

it("finds parts made and planned", () => {
  expect(partsOf(null)).toBeNull();
  expect(partsOf(sampleOf("a", 0))).toBeNull();
  expect(partsOf(sampleOf("a", 0, { part_count: 41 }))).toEqual({ done: 41, planned: null });
  expect(partsOf(sampleOf("a", 0, { part_count: 41, extras: { parts_planned: 120 } }))).toEqual({ done: 41, planned: 120 });
  expect(partsOf(sampleOf("a", 0, { part_count: 41, extras: { parts_planned: "many" } }))?.planned).toBeNull();
});
