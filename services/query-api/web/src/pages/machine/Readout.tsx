/** What every signal was at the cursor's time: follows the cursor, on the side where there is room. */
import type { ChartGroup } from "../../charts/group";
import { clockTime, fullTime } from "../../format/time";
import { t } from "../../messages/language";
import { StateMark } from "../../states/StateMark";
import { toState } from "../../states/states";
import { stateWord } from "../../states/stateText";
import { CHARTS, withUnit, type ChartSpec } from "./fields";
import { formatSpan } from "./spanOf";
import type { History } from "./useHistory";

function valueText(history: History, spec: ChartSpec, index: number): string {
  const value = history.series.column(spec.field).mean[index] ?? null;
  return value === null ? "–" : withUnit(value, spec);
}

function spanText(history: History, spec: ChartSpec, index: number): string {
  const { min, max } = history.series.column(spec.field);
  const low = min[index] ?? null;
  const high = max[index] ?? null;
  if (low === null || high === null || low === high) return "";
  return formatSpan({ min: low, max: high }, spec.decimals);
}

/** The same for screen readers, in one sentence. */
export function readoutText(history: History, index: number): string {
  const time = history.series.times[index];
  if (time === undefined) return "";
  const word = history.series.states[index];
  const parts = CHARTS.map((spec) => `${t(`field.${spec.field}`)} ${valueText(history, spec, index)}`);
  return [clockTime(time), word ? stateWord(toState(word)) : t("charts.noData"), ...parts].join(", ");
}

/** Width of the box, px: as in charts.css. */
const WIDTH = 280;
const DISTANCE = 12;

export function Readout({ history, group }: { history: History; group: ChartGroup }) {
  void history.version.value;
  const cursor = group.cursor.value;
  const time = cursor && history.series.times[cursor.index];
  if (!cursor || time === null || time === undefined) return null;
  const word = history.series.states[cursor.index] ?? null;
  const x = cursor.plotLeft + cursor.left;
  const flip = cursor.left > cursor.plotWidth / 2;
  const left = Math.max(0, flip ? x - WIDTH - DISTANCE : x + DISTANCE);
  return (
    <div class="readout" data-testid="readout" style={{ left: `${left}px` }} aria-hidden="true">
      <p class="readout-time" title={fullTime(time)}>
        <b>{clockTime(time)}</b>
        {word !== null && <StateMark state={toState(word)} />}
        {word === null ? t("charts.noData") : stateWord(toState(word))}
      </p>
      <dl>
        {CHARTS.map((spec) => (
          <div key={spec.field}>
            <dt>{t(`field.${spec.field}`)}</dt>
            <dd>{valueText(history, spec, cursor.index)}</dd>
            <dd class="readout-span">{spanText(history, spec, cursor.index)}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}
