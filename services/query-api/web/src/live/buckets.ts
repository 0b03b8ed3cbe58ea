/**
 * A window of fixed-width time buckets with the lowest, mean and highest value of some fields: filled from `/series`,
 * carried on by live samples. Its size never exceeds `capacity`, however long the page stays open.
 */
import type { Sample, Series } from "../api/types";

type Cell = number | null;
export interface Column {
  min: Cell[];
  mean: Cell[];
  max: Cell[];
}

export class BucketSeries {
  /** Start of each bucket, epoch ms, evenly spaced. */
  readonly times: number[] = [];
  /** Last state word in the bucket; null where there was no sample. */
  readonly states: (string | null)[] = [];
  private readonly columns = new Map<string, Column>();
  /** Values so far in the newest bucket, per field, for its running mean. */
  private readonly counts = new Map<string, number>();
  /** Samples before this are already in what was loaded. */
  private loadedUntilMs = -Infinity;

  constructor(
    readonly fields: readonly string[],
    private width: number,
    readonly capacity: number,
  ) {
    for (const field of fields) this.columns.set(field, { min: [], mean: [], max: [] });
  }

  get bucketMs(): number {
    return this.width;
  }

  column(field: string): Column {
    const column = this.columns.get(field);
    if (!column) throw new RangeError(`no field ${field}`);
    return column;
  }

  load(series: Series): void {
    this.clear();
    this.width = series.bucket_ms;
    this.loadedUntilMs = Date.parse(series.to);
    const skip = Math.max(0, series.times.length - this.capacity);
    for (let i = skip; i < series.times.length; i++) {
      this.times.push(series.times[i] as number);
      const filled = this.fields.some((field) => (series.fields[field]?.mean[i] ?? null) !== null);
      this.states.push(series.states[i] ?? (filled ? "unknown" : null));
    }
    for (const field of this.fields) {
      const from = series.fields[field];
      const to = this.column(field);
      for (const part of ["min", "mean", "max"] as const) {
        for (let i = skip; i < series.times.length; i++) to[part].push(from?.[part][i] ?? null);
      }
    }
  }

  /** Adds a sample; one that is older than the window or already loaded changes nothing. */
  add(timeMs: number, sample: Sample): void {
    if (timeMs < this.loadedUntilMs) return;
    const index = this.indexOf(timeMs);
    if (index < 0) return;
    this.states[index] = sample.state ?? "unknown";
    for (const field of this.fields) {
      const value = sample[field as keyof Sample];
      if (typeof value === "number") this.put(field, index, value);
    }
  }

  private put(field: string, index: number, value: number): void {
    const column = this.column(field);
    const before = column.mean[index] ?? null;
    if (before === null) {
      column.min[index] = column.mean[index] = column.max[index] = value;
      this.counts.set(field, 1);
      return;
    }
    const newest = index === this.times.length - 1;
    const count = (newest ? this.counts.get(field) : undefined) ?? 1;
    column.mean[index] = before + (value - before) / (count + 1);
    column.min[index] = Math.min(column.min[index] ?? value, value);
    column.max[index] = Math.max(column.max[index] ?? value, value);
    if (newest) this.counts.set(field, count + 1);
  }

  /** The bucket of a time, opening empty ones up to it; -1 before the window. */
  private indexOf(timeMs: number): number {
    const first = this.times[0];
    if (first === undefined) return this.open(Math.floor(timeMs / this.width) * this.width);
    const index = Math.floor((timeMs - first) / this.width);
    if (index < this.times.length) return index;
    if (index >= this.times.length + this.capacity) {
      this.clear();
      return this.open(Math.floor(timeMs / this.width) * this.width);
    }
    while ((this.times.at(-1) as number) + this.width <= timeMs) this.open((this.times.at(-1) as number) + this.width);
    return this.times.length - 1;
  }

  private open(startMs: number): number {
    this.times.push(startMs);
    this.states.push(null);
    this.counts.clear();
    for (const column of this.columns.values()) for (const part of [column.min, column.mean, column.max]) part.push(null);
    if (this.times.length > this.capacity) {
      this.times.shift();
      this.states.shift();
      for (const column of this.columns.values()) {
        for (const part of [column.min, column.mean, column.max]) part.shift();
      }
    }
    return this.times.length - 1;
  }

  private clear(): void {
    this.times.length = this.states.length = 0;
    this.counts.clear();
    this.loadedUntilMs = -Infinity;
    for (const column of this.columns.values()) column.min.length = column.mean.length = column.max.length = 0;
  }
}
