/**
 * One machine on the wall. What changes twice a second (part count, age) is bound as signals, so that 500 tiles cost a
 * few text updates, not 500 renders.
 */
import { useComputed, type ReadonlySignal } from "@preact/signals";
import { formatDuration } from "../../format/duration";
import { Sparkline } from "../../charts/Sparkline";
import { clock } from "../../live/clock";
import type { Machine } from "../../live/fleet";
import { t } from "../../messages/language";
import { pageHref } from "../../routing/router";
import { StateMark } from "../../states/StateMark";
import { AGE_SHOWN_MS, sinceText, stateWord } from "../../states/stateText";
import { partsOf } from "./parts";

/** "8 s old" once the last sample is older than 2 s; empty while fresh. */
function useAge(machine: Machine): ReadonlySignal<string> {
  return useComputed(() => {
    const ms = machine.sampleMs.value;
    if (ms === null) return "";
    const age = clock.value - ms;
    return age > AGE_SHOWN_MS ? t("age.short", { duration: formatDuration(age) }) : "";
  });
}

function Parts({ machine }: { machine: Machine }) {
  const key = useComputed(() => {
    const parts = partsOf(machine.sample.value);
    return parts ? `${parts.done}/${parts.planned ?? ""}` : "";
  }).value;
  const [done, planned] = key.split("/");
  if (!key) return <span class="tile-parts" />;
  return (
    <span class="tile-parts">
      {planned ? t("wall.parts", { done: done ?? "", planned }) : t("wall.partsOnly", { done: done ?? "" })}
    </span>
  );
}

function Bar({ machine }: { machine: Machine }) {
  const width = useComputed(() => {
    const parts = partsOf(machine.sample.value);
    return parts?.planned ? Math.min(100, Math.round((100 * parts.done) / parts.planned)) : null;
  }).value;
  return (
    <span class="tile-bar" data-empty={width === null} aria-hidden="true">
      {width !== null && <span style={{ width: `${width}%` }} />}
    </span>
  );
}

export function Tile({ machine }: { machine: Machine }) {
  const state = machine.state.value;
  const since = useComputed(() => sinceText(machine.sinceMs.value, clock.value));
  const program = useComputed(() => machine.sample.value?.program ?? t("wall.noProgram"));
  const age = useAge(machine);
  const word = stateWord(state);
  return (
    <a
      class="tile"
      href={pageHref(`/machines/${encodeURIComponent(machine.id)}`)}
      data-testid="tile"
      data-machine={machine.id}
      data-state={state}
      data-stale={machine.stale.value}
      aria-label={t("wall.tile", { id: machine.id, state: word, since: since.value })}
    >
      <span class="tile-head">
        <span class="tile-name" title={machine.id}>
          {machine.id}
        </span>
        <span class="tile-age">{age}</span>
      </span>
      <span class="tile-state state-chip" data-state={state}>
        <StateMark state={state} />
        <b>{word}</b>
        <span class="tile-since">{since}</span>
      </span>
      <span class="tile-job">
        <span class="tile-program">{program}</span>
        <Parts machine={machine} />
      </span>
      <Bar machine={machine} />
      <Sparkline machine={machine} />
    </a>
  );
}
