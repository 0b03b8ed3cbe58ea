/** The charts as a table of at most 24 rows, for those who can't or won't read charts. Built only while it is open. */
import { useState } from "preact/hooks";
import { formatDuration } from "../../format/duration";
import { formatNumber } from "../../format/number";
import { clockTime, fullTime } from "../../format/time";
import type { BucketSeries } from "../../live/buckets";
import { t } from "../../messages/language";
import { toState } from "../../states/states";
import { stateWord } from "../../states/stateText";
import { CHARTS } from "./fields";
import type { History } from "./useHistory";

const ROWS_MAX = 24;

function meanOf(values: readonly (number | null)[]): number | null {
  const there = values.filter((value) => value !== null);
  return there.length === 0 ? null : there.reduce((sum, value) => sum + value, 0) / there.length;
}

function Row({ series, start, step }: { series: BucketSeries; start: number; step: number }) {
  const time = series.times[start] as number;
  const word = series.states.slice(start, start + step).findLast((state) => state !== null);
  return (
    <tr>
      <th scope="row" title={fullTime(time)}>
        {clockTime(time)}
      </th>
      <td>{word ? stateWord(toState(word)) : t("charts.noData")}</td>
      {CHARTS.map(({ field, decimals }) => {
        const mean = meanOf(series.column(field).mean.slice(start, start + step));
        return <td key={field}>{mean === null ? "–" : formatNumber(mean, decimals)}</td>;
      })}
    </tr>
  );
}

function Table({ history }: { history: History }) {
  void history.version.value;
  const { series } = history;
  const step = Math.max(1, Math.ceil(series.times.length / ROWS_MAX));
  const starts = series.times.flatMap((_, i) => (i % step === 0 ? [i] : [])).reverse();
  return (
    // oxlint-disable-next-line jsx-a11y/no-noninteractive-tabindex -- it scrolls sideways, with the arrow keys too
    <div class="table-scroll" role="region" aria-label={t("charts.table")} tabIndex={0}>
      <table data-testid="history-table">
        <caption>{t("charts.tableNote", { duration: formatDuration(step * series.bucketMs) })}</caption>
        <thead>
          <tr>
            <th scope="col">{t("charts.time")}</th>
            <th scope="col">{t("timeline.title")}</th>
            {CHARTS.map((spec) => (
              <th key={spec.field} scope="col">
                {t(`field.${spec.field}`)}, {spec.unit}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {starts.map((start) => (
            <Row key={series.times[start]} series={series} start={start} step={step} />
          ))}
        </tbody>
      </table>
    </div>
  );
}

export function HistoryTable({ history }: { history: History }) {
  const [open, setOpen] = useState(false);
  return (
    <details class="history-table" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{t("charts.table")}</summary>
      {open && <Table history={history} />}
    </details>
  );
}
