/** Edges that are silent, in words. */
import type { LiveEdge } from "../api/types";
import { timeSeenFrom } from "../format/time";
import { t } from "../messages/language";

/** Those that are silent, the one with the most machines first; not those whose machines have moved to others. */
export function silentEdges(edges: readonly LiveEdge[]): LiveEdge[] {
  return edges.filter((edge) => edge.silent_since !== null && edge.machines > 0).sort((a, b) => b.machines - a.machines);
}

/** "Edge north silent since 14:02: 40 machines unknown". */
export function silenceText({ edge, silent_since, machines }: LiveEdge, nowMs: number): string {
  const time = timeSeenFrom(Date.parse(silent_since ?? ""), nowMs);
  if (machines === 1) return t("edge.silentOne", { edge, time });
  return t("edge.silent", { edge, time, machines });
}
