/** Where the tool has been in the last minute, X to the right and Y up, at one scale for both. */
import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { extentOf, paintPath } from "../../charts/paintPath";
import { shownTheme } from "../../frame/theme";
import { formatNumber } from "../../format/number";
import { clock } from "../../live/clock";
import { knownUntil } from "../../live/connection";
import { drawSoon, forgetDraw } from "../../live/draw";
import { language, t } from "../../messages/language";
import { PATH_SPAN_MS, type History } from "./useHistory";

const SECONDS = PATH_SPAN_MS / 1000;

const mm = (value: number) => formatNumber(value, 1);

export function ToolPath({ history }: { history: History }) {
  void [history.version.value, clock.value];
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const element = canvas.current;
    if (!element) return;
    const draw = () => paintPath(element, history.path, knownUntil(), PATH_SPAN_MS);
    const stop = effect(() => {
      void [history.version.value, clock.value, shownTheme.value, language.value];
      drawSoon(draw);
    });
    const observer = new ResizeObserver(() => drawSoon(draw));
    observer.observe(element);
    return () => {
      stop();
      observer.disconnect();
      forgetDraw(draw);
    };
  }, [history]);
  const extent = extentOf(history.path, knownUntil() - PATH_SPAN_MS);
  const label = extent
    ? t("path.label", { seconds: SECONDS, x0: mm(extent.x0), x1: mm(extent.x1), y0: mm(extent.y0), y1: mm(extent.y1) })
    : t("path.none", { seconds: SECONDS });
  return (
    <section class="path card" aria-label={t("path.title")}>
      <div class="chart-head">
        <h2>{t("path.title")}</h2>
        <span class="chart-note">{t("path.span", { seconds: SECONDS })}</span>
      </div>
      <div class="path-box">
        <canvas ref={canvas} role="img" aria-label={label} data-testid="tool-path" />
        {!extent && <p class="path-none">{label}</p>}
      </div>
    </section>
  );
}
