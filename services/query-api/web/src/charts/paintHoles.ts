/** Holes in a chart: hatched over the full height, and said in words where there is room. */
import type uPlot from "uplot";
import { timeSeenFrom } from "../format/time";
import { serverNow } from "../live/clock";
import { t } from "../messages/language";
import type { Hole } from "./holes";
import { hatch, palette } from "./paint";

export function holeText(hole: Hole): string {
  if (hole.sinceMs === null) return t("charts.noData");
  return t("charts.noDataSince", { time: timeSeenFrom(hole.sinceMs, serverNow()) });
}

function label(context: CanvasRenderingContext2D, text: string, left: number, width: number, middle: number, ratio: number): void {
  context.font = `${12 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
  const textWidth = context.measureText(text).width;
  const room = 6 * ratio;
  if (textWidth + 2 * room > width) return;
  const colours = palette();
  context.fillStyle = colours.surface;
  context.fillRect(left + (width - textWidth) / 2 - room, middle - 9 * ratio, textWidth + 2 * room, 18 * ratio);
  context.fillStyle = colours.muted;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, left + width / 2, middle);
}

/** For uPlot's `draw` hook; works in device pixels. */
export function paintHoles(chart: uPlot, holes: readonly Hole[]): void {
  const { ctx: context, bbox } = chart;
  const ratio = devicePixelRatio || 1;
  for (const hole of holes) {
    const left = Math.max(bbox.left, chart.valToPos(hole.fromMs, "x", true));
    const right = Math.min(bbox.left + bbox.width, chart.valToPos(hole.toMs, "x", true));
    if (right - left < 1) continue;
    context.save();
    context.strokeStyle = palette().hatch;
    context.lineWidth = ratio;
    hatch(context, left, bbox.top, right - left, bbox.height, 8 * ratio);
    label(context, holeText(hole), left, right - left, bbox.top + bbox.height / 2, ratio);
    context.restore();
  }
}
