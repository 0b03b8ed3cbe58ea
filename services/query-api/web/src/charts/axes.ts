/** Axes that all charts share, so that their plot areas lie exactly under one another. */
import type uPlot from "uplot";
import { formatNumber } from "../format/number";
import { clockTime, minuteTime } from "../format/time";
import { palette } from "./paint";

/** Room for "12,000", px. */
const Y_AXIS_WIDTH = 56;
export const X_AXIS_HEIGHT = 24;
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';
/** Windows shorter than this get seconds at their ticks, ms. */
const SECONDS_BELOW_MS = 300_000;
/** Room right of the plot for half of the last time, px. */
export const PADDING: uPlot.Padding = [10, 24, 4, 0];

function timeTicks(chart: uPlot, splits: number[]): string[] {
  const scale = chart.scales["x"];
  const span = (scale?.max ?? 0) - (scale?.min ?? 0);
  return splits.map((ms) => (span < SECONDS_BELOW_MS ? clockTime(ms) : minuteTime(ms)));
}

export function xAxis(show: boolean): uPlot.Axis {
  return {
    show,
    size: X_AXIS_HEIGHT,
    gap: 4,
    space: 72,
    font: FONT,
    stroke: () => palette().muted,
    grid: { show: false },
    ticks: { stroke: () => palette().grid, size: 4, width: 1 },
    values: timeTicks,
  };
}

/** How many decimals a step such as 2.5 needs. */
function decimalsOf(step: number): number {
  let decimals = 0;
  while (decimals < 4 && Math.abs(step * 10 ** decimals - Math.round(step * 10 ** decimals)) > 1e-6) decimals++;
  return decimals;
}

export function yAxis(decimals: number, show = true): uPlot.Axis {
  return {
    scale: "y",
    size: Y_AXIS_WIDTH,
    gap: 8,
    space: 24,
    font: FONT,
    stroke: () => (show ? palette().muted : "transparent"),
    grid: { show, stroke: () => palette().grid, width: 1 },
    ticks: { show: false },
    values: (_chart, splits, _index, _space, step) =>
      splits.map((value) => (show ? formatNumber(value, Math.min(decimals, decimalsOf(step))) : "")),
  };
}
