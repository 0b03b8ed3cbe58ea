/** Runs of one state over time, and each state's share of a window. */
import type { BucketSeries } from "../live/buckets";
import { toState, type State } from "../states/states";
import type { Hole } from "./holes";

export interface Segment {
  state: State;
  fromMs: number;
  toMs: number;
}

/** A bucket holds until the next one with data, or until a hole begins. */
export function segmentsOf(series: BucketSeries, holes: readonly Hole[], untilMs: number): Segment[] {
  const segments: Segment[] = [];
  const filled = series.times.flatMap((time, i) => (series.states[i] === null ? [] : [{ time, state: toState(series.states[i]) }]));
  for (const [i, { time, state }] of filled.entries()) {
    const next = filled[i + 1]?.time ?? untilMs;
    const hole = holes.find(({ fromMs }) => fromMs > time && fromMs <= next);
    const toMs = hole ? hole.fromMs : Math.max(next, time);
    const last = segments.at(-1);
    if (last && last.state === state && last.toMs === time) last.toMs = toMs;
    else segments.push({ state, fromMs: time, toMs });
  }
  return segments;
}

/** Share of the window per state, 0 to 1; what is left over to 1 has no data. */
export function sharesOf(segments: readonly Segment[], fromMs: number, toMs: number): Map<State, number> {
  const shares = new Map<State, number>();
  for (const segment of segments) {
    const ms = Math.min(segment.toMs, toMs) - Math.max(segment.fromMs, fromMs);
    if (ms > 0) shares.set(segment.state, (shares.get(segment.state) ?? 0) + ms / (toMs - fromMs));
  }
  return shares;
}
