/** A state in words, and how long it has lasted. */
import { formatDuration } from "../format/duration";
import { t } from "../messages/language";
import type { State } from "./states";

export function stateWord(state: State): string {
  return t(`state.${state}`);
}

/** "since 12 min". `sinceMs` null: longer ago than the server looked back. */
export function sinceText(sinceMs: number | null, nowMs: number): string {
  if (sinceMs === null) return t("state.sinceLong");
  return t("state.since", { duration: formatDuration(nowMs - sinceMs) });
}

/** From here on the age of a value is shown. */
export const AGE_SHOWN_MS = 2_000;
