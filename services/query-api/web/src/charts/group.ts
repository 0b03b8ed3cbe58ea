/** The charts of one page: one cursor, one window. */
import { signal } from "@preact/signals";
import type uPlot from "uplot";

export interface Cursor {
  /** Index into the data. */
  index: number;
  /** Pixels from the left and top of the chart's plot area, and that area's left edge and width. */
  left: number;
  plotLeft: number;
  plotWidth: number;
}

let made = 0;

export class ChartGroup {
  readonly key = `charts-${made++}`;
  readonly charts = new Set<uPlot>();
  readonly cursor = signal<Cursor | null>(null);
  /** While shift-dragging: how far the window is moved into the past, ms. */
  readonly panMs = signal(0);

  constructor(
    /** Called with a window that the user has dragged, epoch ms. */
    readonly zoomTo: (fromMs: number, toMs: number) => void,
    readonly zoomReset: () => void,
  ) {}

  cursorMoved(chart: uPlot): void {
    const { left, idx } = chart.cursor;
    if (left === undefined || left < 0 || idx === null || idx === undefined) {
      if (this.cursor.peek() !== null) this.cursor.value = null;
      return;
    }
    const plot = chart.over.getBoundingClientRect();
    const root = chart.root.getBoundingClientRect();
    const next = { index: idx, left, plotLeft: plot.left - root.left, plotWidth: plot.width };
    const now = this.cursor.peek();
    if (now?.left !== left || now.index !== idx) this.cursor.value = next;
  }

  selected(chart: uPlot): void {
    const { left, width } = chart.select;
    if (width <= 2) return;
    const fromMs = chart.posToVal(left, "x");
    const toMs = chart.posToVal(left + width, "x");
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.zoomTo(fromMs, toMs);
  }

  /** Moves the cursor by whole steps of data; from nowhere it starts at the newest. */
  step(steps: number): void {
    const chart = [...this.charts].at(-1);
    const times = chart?.data[0];
    if (!chart || !times || times.length === 0) return;
    const from = this.cursor.peek()?.index ?? times.length;
    const index = Math.max(0, Math.min(times.length - 1, from + steps));
    const left = chart.valToPos(times[index] as number, "x");
    for (const each of this.charts) each.setCursor({ left, top: 0 });
  }

  hideCursor(): void {
    for (const chart of this.charts) chart.setCursor({ left: -10, top: -10 });
  }
}
