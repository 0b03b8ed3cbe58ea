/** Mouse and touch on a chart. uPlot itself zooms by drag; here are pan by shift-drag, reset, and the finger's cursor. */
import type uPlot from "uplot";
import type { ChartGroup } from "./group";

function pan(chart: uPlot, group: ChartGroup, start: MouseEvent): void {
  const { min = 0, max = 0 } = chart.scales["x"] ?? {};
  const msPerPixel = ((max ?? 0) - (min ?? 0)) / chart.over.clientWidth;
  const shift = (event: MouseEvent) => (event.clientX - start.clientX) * msPerPixel;
  const move = (event: MouseEvent) => {
    group.panMs.value = shift(event);
  };
  const end = (event: MouseEvent) => {
    removeEventListener("mousemove", move);
    group.panMs.value = 0;
    const by = shift(event);
    if (Math.abs(event.clientX - start.clientX) > 2) group.zoomTo((min ?? 0) - by, (max ?? 0) - by);
  };
  addEventListener("mousemove", move);
  addEventListener("mouseup", end, { once: true });
}

export function bindMouse(group: ChartGroup): uPlot.Cursor.Bind {
  return {
    mousedown: (chart, _target, handler) => (event) => {
      if (event.button !== 0) return null;
      if (!event.shiftKey) return handler(event);
      pan(chart, group, event);
      return null;
    },
    dblclick: () => () => {
      group.zoomReset();
      return null;
    },
  };
}

/** A finger moves the cursor; vertical swipes still scroll the page (`touch-action: pan-y`). */
export function bindTouch(chart: uPlot, group: ChartGroup): () => void {
  const show = (event: TouchEvent) => {
    const finger = event.touches[0];
    if (!finger) return;
    const left = finger.clientX - chart.over.getBoundingClientRect().left;
    for (const each of group.charts) each.setCursor({ left, top: 0 });
  };
  chart.over.addEventListener("touchstart", show, { passive: true });
  chart.over.addEventListener("touchmove", show, { passive: true });
  return () => {
    chart.over.removeEventListener("touchstart", show);
    chart.over.removeEventListener("touchmove", show);
  };
}
