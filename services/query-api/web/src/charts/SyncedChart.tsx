/**
 * A uPlot chart in a stack that shares one time cursor and one window. What is drawn is given by `options` and `data`;
 * size, redrawing, cursor, zoom by drag, pan by shift-drag and reset by double click are the same for all and live here.
 */
import { effect, type ReadonlySignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { shownTheme } from "../frame/theme";
import { clock } from "../live/clock";
import { drawSoon, forgetDraw } from "../live/draw";
import { language } from "../messages/language";
import type { ChartGroup } from "./group";
import { bindMouse, bindTouch } from "./gestures";

export interface ChartDrawing {
  /** Read once per language and theme. */
  options: () => Omit<uPlot.Options, "width" | "height">;
  /** Read at every drawing; `window` in epoch ms. */
  data: () => { columns: uPlot.AlignedData; window: { fromMs: number; toMs: number } };
}

interface Mounting extends ChartDrawing {
  group: ChartGroup;
  /** Counts up when the data changed. */
  version: ReadonlySignal<number>;
  height: number;
}

interface SyncedChartProps extends Mounting {
  testId: string;
  label: string;
}

/** Narrower than this the box is not laid out yet, px. */
const WIDTH_MIN = 80;

function mount(element: HTMLElement, props: Mounting): () => void {
  const size = () => ({ width: Math.max(WIDTH_MIN, element.clientWidth), height: props.height });
  const options = props.options();
  const chart = new uPlot(
    {
      ...options,
      ...size(),
      ms: 1,
      legend: { show: false },
      cursor: {
        y: false,
        sync: { key: props.group.key, setSeries: false },
        drag: { x: true, y: false, setScale: false },
        bind: bindMouse(props.group),
        points: { show: false },
      },
      hooks: {
        ...options.hooks,
        setCursor: [(self) => props.group.cursorMoved(self)],
        setSelect: [(self) => props.group.selected(self)],
      },
    },
    [[]],
    element,
  );
  props.group.charts.add(chart);
  const unbindTouch = bindTouch(chart, props.group);
  const draw = () => {
    const { columns, window } = props.data();
    const shift = props.group.panMs.peek();
    chart.batch(() => {
      chart.setData(columns, false);
      chart.setScale("x", { min: window.fromMs - shift, max: window.toMs - shift });
    });
  };
  const stop = effect(() => {
    void [props.version.value, clock.value, props.group.panMs.value];
    drawSoon(draw);
  });
  const observer = new ResizeObserver(() => {
    if (element.clientWidth >= WIDTH_MIN) chart.setSize(size());
  });
  observer.observe(element);
  return () => {
    stop();
    observer.disconnect();
    unbindTouch();
    forgetDraw(draw);
    props.group.charts.delete(chart);
    chart.destroy();
  };
}

export function SyncedChart(props: SyncedChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const { group, version, height, options, data, testId, label } = props;
  const look = `${shownTheme.value}/${language.value}`;
  useEffect(() => {
    if (box.current) return mount(box.current, { group, version, height, options, data });
    return undefined;
  }, [look, group, version, height, options, data]);
  return (
    <div
      ref={box}
      class="chart-canvas"
      style={{ height: `${height}px` }}
      role="img"
      aria-label={label}
      data-testid={testId}
    />
  );
}
