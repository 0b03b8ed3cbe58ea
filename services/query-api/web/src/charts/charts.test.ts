import { describe, expect, it } from "vitest";
import type { StateWord } from "../api/types";
import { BucketSeries } from "../live/buckets";
import { sampleOf } from "../live/testing";
import { chartColumns, niceCeil, yRange } from "./columns";
import { holesOf, type Window } from "./holes";
import { extentOf, frameOf } from "./paintPath";
import { segmentsOf, sharesOf } from "./segments";
import { PointRing } from "../live/ring";

/** A series of 1 s buckets with a sample at each given second. */
function seriesAt(seconds: number[], state = (_second: number): StateWord => "running"): BucketSeries {
  const series = new BucketSeries(["temperature"], 1000, 1000);
  for (const second of seconds) {
    const sample = sampleOf("a", second * 1000, { temperature: second, state: state(second) });
    series.add(second * 1000, sample);
  }
  return series;
}
const range = (from: number, to: number, step = 1) =>
  Array.from({ length: Math.ceil((to - from) / step) }, (_, i) => from + i * step);
const minute: Window = { fromMs: 0, toMs: 60_000, live: true, lastMs: null };
const holes = (series: BucketSeries, window?: Window) =>
  holesOf(series.times, series.states, series.bucketMs, window);

describe("holesOf", () => {
  it("finds a hole between data, and none in an unbroken line", () => {
    expect(holes(seriesAt(range(0, 60)))).toEqual([]);
    expect(holes(seriesAt([...range(0, 30), ...range(40, 60)]))).toEqual([{ fromMs: 30_000, toMs: 40_000, sinceMs: null }]);
  });

  it("takes the pace of a slow machine for its pace", () => {
    expect(holes(seriesAt(range(0, 100, 6)))).toEqual([]);
    expect(holes(seriesAt([...range(0, 60, 6), 120, 126, 132]))).toHaveLength(1);
  });

  it("counts one empty bucket where buckets are wide", () => {
    expect(holesOf([0, 60_000, 120_000, 180_000], ["a", null, "a", "a"], 60_000)).toEqual([
      { fromMs: 60_000, toMs: 120_000, sinceMs: null },
    ]);
  });

  it("says what is missing at both ends of a window", () => {
    expect(holes(seriesAt(range(20, 40)), minute)).toEqual([
      { fromMs: 0, toMs: 20_000, sinceMs: null },
      { fromMs: 40_000, toMs: 60_000, sinceMs: 40_000 },
    ]);
  });

  it("says since when a window is empty, unless it lies in the past", () => {
    expect(holes(seriesAt([]), { ...minute, lastMs: -5 })).toEqual([{ fromMs: 0, toMs: 60_000, sinceMs: -5 }]);
    expect(holes(seriesAt([]), { ...minute, live: false, lastMs: -5 })[0]?.sinceMs).toBeNull();
    expect(holes(seriesAt(range(0, 40)), { ...minute, live: false })[0]?.sinceMs).toBeNull();
  });
});

it("breaks the line at holes only", () => {
  const series = seriesAt([0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 40]);
  const [times, , mean] = chartColumns(series, "temperature", holes(series));
  expect(times).toHaveLength(41);
  expect(mean?.[1]).toBeUndefined();
  expect(mean?.[2]).toBe(2);
  expect(mean?.[30]).toBeNull();
});

describe("segments", () => {
  const series = seriesAt([...range(0, 30), ...range(40, 60)], (s) => (s < 20 ? "running" : "alarm"));
  const segments = segmentsOf(series, holes(series, minute), minute.toMs);

  it("runs until the next state or hole", () => {
    expect(segments).toEqual([
      { state: "running", fromMs: 0, toMs: 20_000 },
      { state: "alarm", fromMs: 20_000, toMs: 30_000 },
      { state: "alarm", fromMs: 40_000, toMs: 60_000 },
    ]);
  });

  it("adds up to the share of each state", () => {
    const shares = sharesOf(segments, 10_000, 60_000);
    expect(shares.get("running")).toBeCloseTo(0.2);
    expect(shares.get("alarm")).toBeCloseTo(0.6);
  });
});

describe("axes", () => {
  it.each([
    [null, null, 100, [0, 100]],
    [3, 62, 100, [0, 100]],
    [3, 117, 100, [0, 120]],
    [-5, 62, 100, [-16, 100]],
    [0, 2987, 100, [0, 3000]],
  ])("%d to %d reaching %d gives %j", (min, max, reach, wanted) => {
    expect(yRange(min, max, reach)).toEqual(wanted);
  });

  it("leaves room around values without a natural zero", () => {
    const [low, high] = yRange(24.1, 40.2, null);
    expect(low).toBeLessThan(24.1);
    expect(low).toBeGreaterThan(15);
    expect(high).toBeGreaterThan(40.2);
  });

  it("rounds up to a round number", () => {
    expect([0, 7.3, 99, 101, 2987].map(niceCeil)).toEqual([0, 8, 100, 110, 3000]);
  });
});

it("frames a tool path in round millimetres, alike in X and Y", () => {
  const path = new PointRing(10);
  expect(extentOf(path, 0)).toBeNull();
  path.push(1, 52, 61);
  path.push(2, 148, 139);
  const extent = extentOf(path, 0);
  expect(extent).toEqual({ x0: 52, x1: 148, y0: 61, y1: 139 });
  const frame = frameOf(extent ?? { x0: 0, x1: 0, y0: 0, y1: 0 });
  expect(frame.x).toBeLessThanOrEqual(52);
  expect(frame.x + frame.side).toBeGreaterThanOrEqual(148);
  expect(frame.y + frame.side).toBeGreaterThanOrEqual(139);
});
