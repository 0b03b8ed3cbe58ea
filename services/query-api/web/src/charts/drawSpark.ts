/** Paints a sparkline: mean line, nothing where there is no data. The y scale is fixed, 0 to `Y_MAX`. */
import type { BucketSeries } from "../live/buckets";
import { holesOf } from "./holes";
import { fitCanvas, palette } from "./paint";

/** Percent. Spindle load may go above 100 for seconds; the line is cut there. */
const Y_MAX = 100;

export function drawSpark(canvas: HTMLCanvasElement, series: BucketSeries, nowMs: number, spanMs: number, field: string): void {
  const pen = fitCanvas(canvas);
  if (!pen) return;
  const { width, height } = pen;
  const colours = palette();
  const context = pen.context;
  context.clearRect(0, 0, width, height);
  context.fillStyle = colours.grid;
  context.fillRect(0, height - 1, width, 1);
  const values = series.column(field).mean;
  const x = (ms: number) => width - ((nowMs - ms) / spanMs) * width;
  const y = (value: number) => height - 1.5 - (Math.min(Math.max(value, 0), Y_MAX) / Y_MAX) * (height - 3);
  const holes = holesOf(series.times, values, series.bucketMs);
  context.strokeStyle = colours.line;
  context.lineWidth = 1.25;
  context.lineJoin = "round";
  context.beginPath();
  let drawing = false;
  let hole = 0;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    const time = series.times[i] as number;
    while (hole < holes.length && time >= (holes[hole] as { toMs: number }).toMs) {
      hole++;
      drawing = false;
    }
    if (value === null || value === undefined || x(time) < 0) continue;
    if (drawing) context.lineTo(x(time), y(value));
    else context.moveTo(x(time), y(value));
    drawing = true;
  }
  context.stroke();
}
