/**
 * Spindle load over the last 10 minutes, on a canvas, 0 to 100 % from bottom to top. Drawn only while on screen, and
 * once a second at most; its history is read when it first comes into view.
 */
import { effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { formatNumber } from "../format/number";
import { shownTheme } from "../frame/theme";
import { backfillSpark } from "../live/backfill";
import { clock } from "../live/clock";
import { knownUntil, recoveries } from "../live/connection";
import { drawSoon, forgetDraw } from "../live/draw";
import { SPARK_FIELD, SPARK_SPAN_MS, type Machine } from "../live/fleet";
import { t } from "../messages/language";
import { drawSpark } from "./drawSpark";

function watchVisible(element: Element, onChange: (visible: boolean) => void): () => void {
  const observer = new IntersectionObserver((entries) => onChange(entries.at(-1)?.isIntersecting ?? false));
  observer.observe(element);
  return () => observer.disconnect();
}

function LoadNow({ machine }: { machine: Machine }) {
  const value = machine.sample.value?.[SPARK_FIELD];
  return <span class="spark-now">{typeof value === "number" ? `${formatNumber(value, 0)} %` : "–"}</span>;
}

export function Sparkline({ machine }: { machine: Machine }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const element = canvas.current;
    if (!element) return;
    const draw = () => drawSpark(element, machine.spark, knownUntil(), SPARK_SPAN_MS, SPARK_FIELD);
    let stop = () => {};
    const unwatch = watchVisible(element, (visible) => {
      stop();
      stop = visible
        ? effect(() => {
            void [clock.value, shownTheme.value, machine.sparkVersion.peek()];
            backfillSpark(machine, recoveries.value);
            drawSoon(draw);
          })
        : () => {};
    });
    return () => {
      stop();
      unwatch();
      forgetDraw(draw);
    };
  }, [machine]);
  return (
    <span class="spark">
      <span class="spark-label">{t("wall.spark")}</span>
      <LoadNow machine={machine} />
      <canvas ref={canvas} aria-hidden="true" />
    </span>
  );
}
