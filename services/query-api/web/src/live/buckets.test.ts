import { describe, expect, it } from "vitest";
import type { Series, StateWord } from "../api/types";
import { BucketSeries } from "./buckets";
import { sampleOf } from "./testing";

const FIELD = "temperature";
const make = (capacity = 5) => new BucketSeries([FIELD], 1000, capacity);
const add = (series: BucketSeries, timeMs: number, temperature: number | null, state: StateWord = "running") =>
  series.add(timeMs, sampleOf("a", timeMs, { temperature, state }));

const loaded: Series = {
  from: new Date(0).toISOString(),
  to: new Date(2500).toISOString(),
  bucket_ms: 1000,
  source: "samples",
  complete: true,
  times: [0, 1000, 2000],
  fields: { [FIELD]: { min: [1, null, 3], mean: [1.5, null, 4], max: [2, null, 5] } },
  states: ["idle", null, null],
};

describe("BucketSeries", () => {
  it("keeps lowest, mean, highest and the last state of a bucket", () => {
    const series = make();
    add(series, 10_100, 4, "idle");
    add(series, 10_200, 1);
    add(series, 10_900, 7, "alarm");
    expect(series.times).toEqual([10_000]);
    expect(series.column(FIELD)).toEqual({ min: [1], mean: [4], max: [7] });
    expect(series.states).toEqual(["alarm"]);
  });

  it("opens empty buckets over a pause", () => {
    const series = make();
    add(series, 0, 1);
    add(series, 3500, 2);
    expect(series.times).toEqual([0, 1000, 2000, 3000]);
    expect(series.column(FIELD).mean).toEqual([1, null, null, 2]);
    expect(series.states).toEqual(["running", null, null, "running"]);
  });

  it("never grows beyond its capacity, whatever comes", () => {
    const series = make();
    for (let ms = 0; ms < 100_000; ms += 250) add(series, ms, ms);
    expect(series.times).toEqual([95_000, 96_000, 97_000, 98_000, 99_000]);
    add(series, 10_000_000, 1);
    expect(series.times).toEqual([10_000_000]);
    for (const part of Object.values(series.column(FIELD))) expect(part).toHaveLength(1);
  });

  it("puts a late sample where it belongs and drops one from before the window", () => {
    const series = make();
    add(series, 5000, 1);
    add(series, 6000, 2);
    add(series, 5500, 3);
    add(series, 4000, 9);
    expect(series.column(FIELD).mean).toEqual([2, 2]);
    expect(series.column(FIELD).max).toEqual([3, 2]);
  });

  it("loads history and carries on after its end without counting samples twice", () => {
    const series = make();
    add(series, 90_000, 1);
    series.load(loaded);
    expect(series.times).toEqual([0, 1000, 2000]);
    expect(series.states).toEqual(["idle", null, "unknown"]); // values without a known state word are data still
    add(series, 2400, 99);
    expect(series.column(FIELD).max).toEqual([2, null, 5]);
    add(series, 2600, 6);
    expect(series.column(FIELD)).toEqual({ min: [1, null, 3], mean: [1.5, null, 5], max: [2, null, 6] });
  });

  it("keeps the newest buckets of a history that is larger than it", () => {
    const series = make(2);
    series.load(loaded);
    expect(series.times).toEqual([1000, 2000]);
    expect(series.column(FIELD).mean).toEqual([null, 4]);
  });

  it("leaves a missing value missing", () => {
    const series = make();
    add(series, 0, null);
    expect(series.column(FIELD).mean).toEqual([null]);
    expect(series.states).toEqual(["running"]);
  });
});
