/** Durations in words: "45 s", "12 min", "3 h 05 min", "2 d 4 h". Input in ms; negative counts as 0. */
import { t } from "../messages/language";

export interface DurationParts {
  unit: "s" | "min" | "h" | "d";
  values: Record<string, string | number>;
}

export function splitDuration(ms: number): DurationParts {
  const s = Math.max(0, Math.floor(ms / 1000));
  const min = Math.floor(s / 60);
  const h = Math.floor(min / 60);
  if (s < 60) return { unit: "s", values: { s } };
  if (min < 60) return { unit: "min", values: { min } };
  if (h < 24) return { unit: "h", values: { h, min: String(min % 60).padStart(2, "0") } };
  return { unit: "d", values: { d: Math.floor(h / 24), h: h % 24 } };
}

export function formatDuration(ms: number): string {
  const { unit, values } = splitDuration(ms);
  return t(`duration.${unit}`, values);
}
