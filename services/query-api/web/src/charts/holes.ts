/** Where a series has no data. A slow machine leaves every other bucket empty: that is its pace, not a hole. */

export interface Hole {
  /** End of the last bucket with data before it, epoch ms. */
  fromMs: number;
  /** Start of the first bucket with data after it; the end of the window for a hole that is still open. */
  toMs: number;
  /** For a hole that still lasts: since when, epoch ms. null: data came again, or it is not known since when. */
  sinceMs: number | null;
}

/** The stretch of time that is looked at, epoch ms. */
export interface Window {
  fromMs: number;
  toMs: number;
  /** Its end is now, so that a hole at its end still lasts. */
  live: boolean;
  /** The machine's last sample, if known: since when there is no data where the whole window holds none. */
  lastMs: number | null;
}

/** A gap below this is never a hole, ms; from it on an empty bucket is one where every bucket usually holds data, ... */
const HOLE_MS_MIN = 5_000;
/** ... and a gap of this many usual steps where a slow machine leaves buckets empty between its samples. */
const STEPS_MIN = 3;

/** The least length of a hole, ms. The usual step is the 90th percentile, so that rare holes don't count as usual. */
function leastHole(filled: readonly number[], bucketMs: number): number {
  const steps = filled.slice(1).map((time, i) => time - (filled[i] as number));
  steps.sort((a, b) => a - b);
  const step = steps[Math.floor((steps.length - 1) * 0.9)] ?? bucketMs;
  return Math.max(HOLE_MS_MIN, step > bucketMs ? STEPS_MIN * step : bucketMs);
}

/**
 * Holes in evenly spaced buckets, in order. `window` adds what lies before the first and after the last data within it;
 * without it only holes between data are found.
 */
export function holesOf(
  times: readonly number[],
  values: readonly unknown[],
  bucketMs: number,
  window?: Window,
): Hole[] {
  const filled = times.filter((_, i) => values[i] !== null && values[i] !== undefined);
  const least = leastHole(filled, bucketMs);
  const holes: Hole[] = [];
  const note = (fromMs: number, toMs: number, sinceMs: number | null) => {
    if (toMs - fromMs >= least) holes.push({ fromMs, toMs, sinceMs });
  };
  if (window && filled.length === 0) {
    const { fromMs, toMs, live, lastMs } = window;
    return [{ fromMs, toMs, sinceMs: live ? lastMs : null }];
  }
  if (window) note(window.fromMs, filled[0] as number, null);
  for (let i = 1; i < filled.length; i++) note((filled[i - 1] as number) + bucketMs, filled[i] as number, null);
  if (window) {
    const endMs = (filled.at(-1) as number) + bucketMs;
    note(endMs, window.toMs, window.live ? endMs : null);
  }
  return holes;
}
