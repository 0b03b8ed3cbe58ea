/** What all canvases share: colours of the theme, sharp pixels, hatching. */
import { shownTheme } from "../frame/theme";

const NAMES = [
  "text",
  "muted",
  "grid",
  "line",
  "band",
  "surface",
  "hatch",
  "running",
  "idle",
  "hold",
  "alarm",
  "offline",
  "no_data",
  "unknown",
] as const;
export type Palette = Record<(typeof NAMES)[number], string>;

let cached: { theme: string; palette: Palette } | null = null;

/** The colours of the style sheet (`--text`, `--line`, …) for the theme that is shown. */
export function palette(): Palette {
  const theme = shownTheme.peek();
  if (cached?.theme === theme) return cached.palette;
  const style = getComputedStyle(document.documentElement);
  const entries = NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]);
  cached = { theme, palette: Object.fromEntries(entries) as Palette };
  return cached.palette;
}

export interface Pen {
  context: CanvasRenderingContext2D;
  /** CSS pixels */
  width: number;
  height: number;
}

/** Gives a canvas as many device pixels as it covers; null while it has no size. */
export function fitCanvas(canvas: HTMLCanvasElement): Pen | null {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = canvas.getContext("2d");
  if (!context || width === 0 || height === 0) return null;
  const deviceWidth = Math.round(width * ratio);
  const deviceHeight = Math.round(height * ratio);
  if (canvas.width !== deviceWidth) canvas.width = deviceWidth;
  if (canvas.height !== deviceHeight) canvas.height = deviceHeight;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

/** Diagonal lines over a box; `step` is their distance in the context's pixels. */
export function hatch(context: CanvasRenderingContext2D, x: number, y: number, w: number, h: number, step: number): void {
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  context.beginPath();
  for (let at = Math.floor((x - h) / step) * step; at < x + w; at += step) {
    context.moveTo(at, y + h);
    context.lineTo(at + h, y);
  }
  context.stroke();
  context.restore();
}
