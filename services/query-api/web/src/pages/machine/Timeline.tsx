/** The states of the window as a band, with each state's share in words below it. */
import { useMemo } from "preact/hooks";
import { PADDING, X_AXIS_HEIGHT, xAxis, yAxis } from "../../charts/axes";
import type { ChartGroup } from "../../charts/group";
import { holesOf } from "../../charts/holes";
import { paintHoles } from "../../charts/paintHoles";
import { paintStates } from "../../charts/paintStates";
import { segmentsOf, sharesOf } from "../../charts/segments";
import { SyncedChart, type ChartDrawing } from "../../charts/SyncedChart";
import { formatPercent } from "../../format/number";
import { minuteTime } from "../../format/time";
import { t } from "../../messages/language";
import { StateMark } from "../../states/StateMark";
import { ALL_STATES } from "../../states/states";
import { stateWord } from "../../states/stateText";
import type { History } from "./useHistory";

const HEIGHT = 44 + X_AXIS_HEIGHT;

function readBand(history: History) {
  const { series } = history;
  const window = history.window();
  const holes = holesOf(series.times, series.states, series.bucketMs, window);
  return { window, holes, segments: segmentsOf(series, holes, window.toMs) };
}

function drawingOf(history: History): ChartDrawing {
  return {
    options: () => ({
      padding: PADDING,
      scales: { x: { time: true }, y: { range: [0, 1] } },
      axes: [xAxis(true), yAxis(0, false)],
      series: [{}, { scale: "y", show: true, paths: () => null, points: { show: false } }],
      hooks: {
        draw: [
          (chart) => {
            const { holes, segments } = readBand(history);
            paintHoles(chart, holes);
            paintStates(chart, segments);
          },
        ],
      },
    }),
    data: () => ({ columns: [history.series.times, history.series.times.map(() => null)], window: history.window() }),
  };
}

export function Timeline({ history, group }: { history: History; group: ChartGroup }) {
  void history.version.value;
  const drawing = useMemo(() => drawingOf(history), [history]);
  const { window, segments } = readBand(history);
  const shares = sharesOf(segments, window.fromMs, window.toMs);
  const known = [...shares.values()].reduce((sum, share) => sum + share, 0);
  const words = ALL_STATES.filter((state) => shares.has(state)).map((state) => ({
    state,
    text: t("timeline.share", { state: stateWord(state), percent: formatPercent(shares.get(state) ?? 0) }),
  }));
  const missing = 1 - known > 0.005 ? t("timeline.share", { state: stateWord("no_data"), percent: formatPercent(1 - known) }) : null;
  const label = t("timeline.label", {
    from: minuteTime(window.fromMs),
    to: minuteTime(window.toMs),
    shares: [...words.map((word) => word.text), missing].filter(Boolean).join(", "),
  });
  return (
    <section class="timeline card" aria-label={t("timeline.title")}>
      <div class="chart-head">
        <h2>{t("timeline.title")}</h2>
        <ul class="timeline-shares" data-testid="timeline-shares">
          {words.map(({ state, text }) => (
            <li key={state} data-state={state}>
              <StateMark state={state} /> {text}
            </li>
          ))}
          {missing && (
            <li data-state="none">
              <span class="none-mark" aria-hidden="true" /> {missing}
            </li>
          )}
        </ul>
      </div>
      <SyncedChart {...drawing} group={group} version={history.version} height={HEIGHT} testId="timeline" label={label} />
    </section>
  );
}
