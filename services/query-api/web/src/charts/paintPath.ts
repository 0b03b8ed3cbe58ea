/** The tool path: older points fade, the newest is a dot; a frame of round millimetres around it. */
import { formatNumber } from "../format/number";
import type { PointRing } from "../live/ring";
import { niceCeil } from "./columns";
import { fitCanvas, palette, type Pen } from "./paint";

export interface Extent {
  x0: number;
  x1: number;
  y0: number;
  y1: number;
}

/** A longer pause between two points is a hole: no line across, ms. */
const PAUSE_MS = 2_000;
/** Room for the numbers at the left and below, px. */
const LEFT = 48;
const BELOW = 32;
const EDGE = 12;
/** Steps of fading. */
const SHADES = 6;

export function extentOf(path: PointRing, sinceMs: number): Extent | null {
  const extent = { x0: Infinity, x1: -Infinity, y0: Infinity, y1: -Infinity };
  path.forEach(sinceMs, (_time, x, y) => {
    extent.x0 = Math.min(extent.x0, x);
    extent.x1 = Math.max(extent.x1, x);
    extent.y0 = Math.min(extent.y0, y);
    extent.y1 = Math.max(extent.y1, y);
  });
  return extent.x0 === Infinity ? null : extent;
}

/** A square frame around the extent whose ends are multiples of a round step, so that it seldom moves. */
export function frameOf({ x0, x1, y0, y1 }: Extent): { x: number; y: number; side: number } {
  const step = niceCeil(Math.max(x1 - x0, y1 - y0, 1) / 4);
  const x = Math.floor(x0 / step) * step;
  const y = Math.floor(y0 / step) * step;
  const side = Math.max(Math.ceil((x1 - x) / step), Math.ceil((y1 - y) / step)) * step;
  return { x, y, side };
}

function paintFrame({ context }: Pen, frame: { x: number; y: number; side: number }, left: number, top: number, size: number): void {
  const colours = palette();
  context.strokeStyle = colours.grid;
  context.lineWidth = 1;
  context.strokeRect(left + 0.5, top + 0.5, size - 1, size - 1);
  context.fillStyle = colours.muted;
  context.font = '12px system-ui, "DejaVu Sans", sans-serif';
  const number = (value: number) => formatNumber(value, frame.side < 4 ? 1 : 0);
  context.textAlign = "right";
  context.fillText(number(frame.y + frame.side), left - 6, top + 12);
  context.fillText("Y mm", left - 6, top + size / 2 + 4);
  context.fillText(number(frame.y), left - 6, top + size - 1);
  context.textAlign = "left";
  context.fillText(number(frame.x), left, top + size + 18);
  context.textAlign = "center";
  context.fillText("X mm", left + size / 2, top + size + 18);
  context.textAlign = "right";
  context.fillText(number(frame.x + frame.side), left + size, top + size + 18);
}

/** `spanMs`: how far back the path reaches. */
export function paintPath(canvas: HTMLCanvasElement, path: PointRing, nowMs: number, spanMs: number): void {
  const pen = fitCanvas(canvas);
  if (!pen) return;
  const { context, width, height } = pen;
  context.clearRect(0, 0, width, height);
  const extent = extentOf(path, nowMs - spanMs);
  if (!extent) return;
  const frame = frameOf(extent);
  const size = Math.min(width - LEFT - EDGE, height - BELOW - EDGE);
  const left = LEFT + (width - LEFT - EDGE - size) / 2;
  paintFrame(pen, frame, left, EDGE, size);
  const px = (x: number) => left + ((x - frame.x) / frame.side) * size;
  const py = (y: number) => EDGE + (1 - (y - frame.y) / frame.side) * size;
  context.strokeStyle = context.fillStyle = palette().line;
  context.lineWidth = 1.5;
  let last: { ms: number; x: number; y: number; shade: number } | null = null;
  context.beginPath();
  path.forEach(nowMs - spanMs, (ms, x, y) => {
    const shade = Math.min(SHADES, Math.max(1, Math.ceil((1 - (nowMs - ms) / spanMs) * SHADES)));
    if (!last || ms - last.ms > PAUSE_MS || shade !== last.shade) {
      context.stroke();
      context.globalAlpha = shade / SHADES;
      context.beginPath();
      if (last && ms - last.ms <= PAUSE_MS) context.moveTo(px(last.x), py(last.y));
      else context.moveTo(px(x), py(y));
    }
    context.lineTo(px(x), py(y));
    last = { ms, x, y, shade };
  });
  context.stroke();
  context.globalAlpha = 1;
  const end = last as { x: number; y: number } | null;
  if (!end) return;
  context.beginPath();
  context.arc(px(end.x), py(end.y), 5, 0, 2 * Math.PI);
  context.fill();
}
