/** History in the form that uPlot draws: null breaks a line, undefined only leaves a bucket out. */
import type uPlot from "uplot";
import type { BucketSeries } from "../live/buckets";
import type { Hole } from "./holes";

/** [times, max, mean, min]; empty buckets that are no hole become undefined, so that a slow machine gets a line. */
export function chartColumns(series: BucketSeries, field: string, holes: readonly Hole[]): uPlot.AlignedData {
  const { max, mean, min } = series.column(field);
  const empty = (index: number) => {
    const time = series.times[index] as number;
    return holes.some((hole) => time < hole.toMs && time + series.bucketMs > hole.fromMs) ? null : undefined;
  };
  const clean = (column: readonly (number | null)[]) => column.map((value, i) => (value === null ? empty(i) : value));
  return [series.times, clean(max), clean(mean), clean(min)];
}

/** The y range of a chart. `reach` null: around the values with room; otherwise from 0 (or below) up to at least `reach`. */
export function yRange(min: number | null, max: number | null, reach: number | null): [number, number] {
  if (min === null || max === null) return [0, reach ?? 1];
  if (reach === null) return niceRange(min, max);
  const top = Math.max(reach, max);
  return [min < 0 ? niceRange(min, top)[0] : 0, niceCeil(top)];
}

/** 1, 2, 2.5 or 5 times a power of ten: the least such number from `value` on, in tenths of its size. */
export function niceCeil(value: number): number {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [0.1, 0.2, 0.25, 0.5].map((part) => part * power).find((size) => value / size <= 12) ?? power;
  return Math.ceil(value / step - 1e-9) * step;
}

function niceRange(min: number, max: number): [number, number] {
  const room = Math.max((max - min) * 0.1, 0.5);
  const step = niceCeil((max - min + 2 * room) / 8);
  return [Math.floor((min - room) / step) * step, Math.ceil((max + room) / step) * step];
}
