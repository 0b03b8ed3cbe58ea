/** All charts of a machine under one time cursor, with the values at that time, and the same as a table. */
import { useRef } from "preact/hooks";
import type { ChartGroup } from "../../charts/group";
import { clock } from "../../live/clock";
import { t } from "../../messages/language";
import { CHARTS } from "./fields";
import { FieldChart } from "./FieldChart";
import { HistoryTable } from "./HistoryTable";
import { movedBy, zoomAround, type Zoom } from "./range";
import { Readout, readoutText } from "./Readout";
import type { History } from "./useHistory";

const STEPS: Record<string, number> = {
  ArrowLeft: -1,
  ArrowRight: 1,
  PageUp: -30,
  PageDown: 30,
  Home: -Infinity,
  End: Infinity,
};

/** The window that a key asks for; null: none. */
function zoomOf({ key, shiftKey }: KeyboardEvent, history: History, group: ChartGroup): Zoom | null {
  const window = history.window();
  const index = group.cursor.peek()?.index;
  const atMs = (index === undefined ? undefined : history.series.times[index]) ?? (window.fromMs + window.toMs) / 2;
  if (key === "+" || key === "=") return zoomAround(window, atMs, 1 / 2, clock.peek());
  if (key === "-") return zoomAround(window, atMs, 2, clock.peek());
  if (shiftKey && key === "ArrowLeft") return movedBy(window, -1 / 4, clock.peek());
  if (shiftKey && key === "ArrowRight") return movedBy(window, 1 / 4, clock.peek());
  return null;
}

export function ChartStack({ history, group }: { history: History; group: ChartGroup }) {
  void history.version.value;
  const spoken = useRef<HTMLParagraphElement>(null);
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") group.hideCursor();
    if (event.key === "0") group.zoomReset();
    const zoom = zoomOf(event, history, group);
    if (zoom) {
      event.preventDefault();
      group.zoomTo(zoom.fromMs, zoom.toMs);
      return;
    }
    const steps = STEPS[event.key];
    if (steps === undefined) return;
    event.preventDefault();
    group.step(steps);
    const cursor = group.cursor.peek();
    if (spoken.current && cursor) spoken.current.textContent = readoutText(history, cursor.index);
  };
  const reported = CHARTS.filter(({ field }) => history.series.column(field).mean.some((value) => value !== null));
  const drawn = reported.length > 0 ? reported : CHARTS;
  const silent = CHARTS.filter((spec) => !drawn.includes(spec));
  return (
    <section class="charts card" aria-label={t("charts.title")} data-testid="charts">
      <div class="chart-head">
        <h2>{t("charts.title")}</h2>
        <span class="chart-note">{t("charts.band")}</span>
      </div>
      {/* oxlint-disable-next-line jsx-a11y/no-noninteractive-element-interactions, jsx-a11y/no-noninteractive-tabindex -- keys move the cursor and the window of the whole stack */}
      <div class="chart-stack" role="group" aria-label={t("charts.help")} tabIndex={0} onKeyDown={onKeyDown}>
        {drawn.map((spec, i) => (
          <FieldChart key={spec.field} spec={spec} history={history} group={group} times={i === drawn.length - 1} />
        ))}
        <Readout history={history} group={group} />
      </div>
      {silent.map((spec) => (
        <p key={spec.field} class="chart-silent" data-testid={`silent-${spec.field}`}>
          {t("charts.notReported", { field: t(`field.${spec.field}`) })}
        </p>
      ))}
      <p class="chart-help">{t("charts.help")}</p>
      <p class="hidden" role="status" ref={spoken} />
      <HistoryTable history={history} />
    </section>
  );
}
