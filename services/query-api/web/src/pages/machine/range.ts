/** The time window of the machine page, as it stands in the URL: `?range=1h`, or `?from=…&to=…` (epoch ms) when zoomed. */

export const RANGES = { "10m": 600_000, "1h": 3_600_000, "24h": 86_400_000 } as const;
export type RangeName = keyof typeof RANGES;
export const RANGE_NAMES = Object.keys(RANGES) as RangeName[];

/** Buckets over the window: about one per pixel of a phone, and every second of ten minutes. */
export const POINTS = 600;
/** The smallest window that can be zoomed to, ms. */
export const WINDOW_MS_MIN = 5_000;

export interface Zoom {
  fromMs: number;
  toMs: number;
}

export function readRange(text: string | null): RangeName {
  return RANGE_NAMES.find((name) => name === text) ?? "10m";
}

/** null: not zoomed, or not a window that makes sense. */
export function readZoom(from: string | null, to: string | null): Zoom | null {
  const fromMs = Number(from ?? Number.NaN);
  const toMs = Number(to ?? Number.NaN);
  return Number.isFinite(fromMs) && Number.isFinite(toMs) && toMs - fromMs >= WINDOW_MS_MIN ? { fromMs, toMs } : null;
}

/** A dragged window in whole ms, widened to the least width around its middle. */
export function widenZoom(fromMs: number, toMs: number): Zoom {
  const spare = Math.max(0, WINDOW_MS_MIN - (toMs - fromMs)) / 2;
  return { fromMs: Math.floor(fromMs - spare), toMs: Math.ceil(toMs + spare) };
}

/** A window of another width around a moment that keeps its place in it; no wider than the widest range, and not into the future. */
export function zoomAround(window: Zoom, atMs: number, factor: number, nowMs: number): Zoom {
  const width = Math.min((window.toMs - window.fromMs) * factor, RANGES["24h"]);
  const share = (atMs - window.fromMs) / (window.toMs - window.fromMs);
  return endedBy(nowMs, widenZoom(atMs - share * width, atMs + (1 - share) * width));
}

/** A window moved by a share of its width, not into the future. */
export function movedBy(window: Zoom, share: number, nowMs: number): Zoom {
  const by = (window.toMs - window.fromMs) * share;
  return endedBy(nowMs, widenZoom(window.fromMs + by, window.toMs + by));
}

function endedBy(nowMs: number, { fromMs, toMs }: Zoom): Zoom {
  const beyond = Math.max(0, Math.ceil(toMs - nowMs));
  return { fromMs: fromMs - beyond, toMs: toMs - beyond };
}
