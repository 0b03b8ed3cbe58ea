/** How far back the page looks; when zoomed, which window, and the way back. */
import { dayTime, clockTime } from "../../format/time";
import { clock } from "../../live/clock";
import { t } from "../../messages/language";
import { setParams } from "../../routing/router";
import { RANGE_NAMES, type RangeName, type Zoom } from "./range";

const DAY_MS = 86_400_000;

function zoomTime(ms: number): string {
  return clock.peek() - ms < DAY_MS ? clockTime(ms) : dayTime(ms);
}

export function resetZoom(): void {
  setParams({ from: null, to: null });
}

export function RangeChoice({ range, zoom }: { range: RangeName; zoom: Zoom | null }) {
  return (
    <div class="ranges" role="group" aria-label={t("range.label")}>
      {RANGE_NAMES.map((name) => (
        <button
          key={name}
          type="button"
          data-testid={`range-${name}`}
          aria-pressed={zoom === null && name === range}
          onClick={() => setParams({ range: name, from: null, to: null })}
        >
          {t(`range.${name}`)}
        </button>
      ))}
      {zoom && (
        <>
          <span class="range-zoomed" data-testid="range-zoomed">
            {t("range.zoomed", { from: zoomTime(zoom.fromMs), to: zoomTime(zoom.toMs) })}
          </span>
          <button type="button" data-testid="range-reset" onClick={resetZoom}>
            {t("range.reset")}
          </button>
        </>
      )}
    </div>
  );
}
