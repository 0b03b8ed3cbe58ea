/** One signal over time: the band from lowest to highest, the mean as a line, holes as holes. */
import { useMemo } from "preact/hooks";
import { PADDING, X_AXIS_HEIGHT, xAxis, yAxis } from "../../charts/axes";
import { chartColumns, yRange } from "../../charts/columns";
import type { ChartGroup } from "../../charts/group";
import { holesOf } from "../../charts/holes";
import { palette } from "../../charts/paint";
import { paintHoles } from "../../charts/paintHoles";
import { SyncedChart, type ChartDrawing } from "../../charts/SyncedChart";
import { minuteTime } from "../../format/time";
import { formatNumber } from "../../format/number";
import { t } from "../../messages/language";
import type { ChartSpec } from "./fields";
import { spanOf } from "./spanOf";
import type { History } from "./useHistory";

const PLOT_HEIGHT = 104;

interface FieldChartProps {
  spec: ChartSpec;
  history: History;
  group: ChartGroup;
  /** Show times below: the last chart of the stack does it for all. */
  times: boolean;
}

function readHoles(history: History) {
  const { series } = history;
  return holesOf(series.times, series.states, series.bucketMs, history.window());
}

function drawingOf(spec: ChartSpec, history: History, times: boolean): ChartDrawing {
  const edge = { scale: "y", points: { show: false } } as const;
  return {
    options: () => ({
      padding: PADDING,
      scales: { x: { time: true }, y: { range: (_chart, min, max) => yRange(min, max, spec.reach) } },
      axes: [xAxis(times), yAxis(spec.decimals)],
      series: [{}, edge, { scale: "y", stroke: () => palette().line, width: 1.5, points: { size: 3 } }, edge],
      bands: [{ series: [1, 3], fill: () => palette().band }],
      hooks: { draw: [(chart) => paintHoles(chart, readHoles(history))] },
    }),
    data: () => ({ columns: chartColumns(history.series, spec.field, readHoles(history)), window: history.window() }),
  };
}

function textOf(spec: ChartSpec, history: History, name: string): string {
  const span = spanOf(history.series.column(spec.field));
  const window = history.window();
  const ends = { field: name, from: minuteTime(window.fromMs), to: minuteTime(window.toMs) };
  if (!span) return t("charts.labelNone", ends);
  const number = (value: number) => formatNumber(value, spec.decimals);
  return t("charts.label", {
    ...ends,
    min: number(span.min),
    mean: number(span.mean),
    max: number(span.max),
    unit: spec.unit,
  });
}

/** Where an axis does not start at zero, the chart says so. */
function AxisMark({ spec, history }: { spec: ChartSpec; history: History }) {
  void history.version.value;
  const span = spanOf(history.series.column(spec.field));
  if (spec.reach !== null || !span) return null;
  const [from] = yRange(span.min, span.max, spec.reach);
  if (from === 0) return null;
  return <span class="chart-note">{t("charts.axisFrom", { value: `${formatNumber(from, 0)} ${spec.unit}` })}</span>;
}

export function FieldChart({ spec, history, group, times }: FieldChartProps) {
  void history.version.value;
  const drawing = useMemo(() => drawingOf(spec, history, times), [spec, history, times]);
  const name = t(`field.${spec.field}`);
  return (
    <div class="chart">
      <div class="chart-head">
        <h3>
          {name}, {spec.unit}
        </h3>
        <AxisMark spec={spec} history={history} />
      </div>
      <SyncedChart
        {...drawing}
        group={group}
        version={history.version}
        height={PLOT_HEIGHT + (times ? X_AXIS_HEIGHT : 0)}
        testId={`chart-${spec.field}`}
        label={textOf(spec, history, name)}
      />
    </div>
  );
}
