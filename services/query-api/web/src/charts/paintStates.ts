/**
 * The state band. Each state differs in height and pattern, not only in colour: running is a full calm bar, idle a low
 * outline, hold upright stripes, alarm a full bar with a tick above, offline crosses; no data is hatched (paintHoles).
 */
import type uPlot from "uplot";
import type { State } from "../states/states";
import { hatch, palette } from "./paint";
import type { Segment } from "./segments";

/** Room above the band for alarm ticks, CSS px. */
const TICK_HEIGHT = 10;

interface Box {
  context: CanvasRenderingContext2D;
  left: number;
  width: number;
  top: number;
  height: number;
  ratio: number;
}

function stripes({ context, left, width, top, height, ratio }: Box): void {
  const step = 6 * ratio;
  context.globalAlpha = 0.25;
  context.fillRect(left, top, width, height);
  context.globalAlpha = 1;
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  for (let at = Math.floor(left / step) * step; at < left + width; at += step) {
    context.fillRect(at, top, step / 2, height);
  }
}

function outline({ context, left, width, top, height, ratio }: Box): void {
  const line = 1.5 * ratio;
  if (width < 3 * line) context.fillRect(left, top + height / 2, width, height / 2);
  else context.strokeRect(left + line / 2, top + height / 2, width - line, height / 2 - line / 2);
}

function crosses({ context, left, width, top, height, ratio }: Box): void {
  context.strokeRect(left, top + ratio / 2, width, height - ratio);
  hatch(context, left, top, width, height, 6 * ratio);
  context.translate(2 * left + width, 0);
  context.scale(-1, 1);
  hatch(context, left, top, width, height, 6 * ratio);
}

function tick({ context, left, top, ratio }: Box): void {
  const half = 5 * ratio;
  context.beginPath();
  context.moveTo(left, top - 2 * ratio);
  context.lineTo(left - half, top - TICK_HEIGHT * ratio);
  context.lineTo(left + half, top - TICK_HEIGHT * ratio);
  context.fill();
}

const PAINT: Record<State, (box: Box) => void> = {
  running: ({ context, left, width, top, height }) => context.fillRect(left, top, width, height),
  idle: outline,
  hold: stripes,
  alarm: (box) => {
    box.context.fillRect(box.left, box.top, box.width, box.height);
    tick(box);
  },
  offline: crosses,
  no_data: ({ context, left, width, top, height, ratio }) => hatch(context, left, top, width, height, 8 * ratio),
  unknown: crosses,
};

/** For uPlot's `draw` hook; works in device pixels. */
export function paintStates(chart: uPlot, segments: readonly Segment[]): void {
  const { ctx: context, bbox } = chart;
  const ratio = devicePixelRatio || 1;
  const colours = palette();
  const top = bbox.top + TICK_HEIGHT * ratio;
  for (const segment of segments) {
    const left = Math.max(bbox.left, chart.valToPos(segment.fromMs, "x", true));
    const right = Math.min(bbox.left + bbox.width, chart.valToPos(segment.toMs, "x", true));
    if (right <= left) continue;
    context.save();
    context.fillStyle = context.strokeStyle = colours[segment.state];
    context.lineWidth = 1.5 * ratio;
    const width = Math.max(right - left, ratio);
    PAINT[segment.state]({ context, left, width, top, height: bbox.height - TICK_HEIGHT * ratio, ratio });
    context.restore();
  }
}
