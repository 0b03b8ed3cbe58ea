/** Name, state since when, job, place, and how old all this is. */
import type { ComponentChildren } from "preact";
import { formatDuration } from "../../format/duration";
import { fullTime } from "../../format/time";
import { clock } from "../../live/clock";
import type { Machine } from "../../live/fleet";
import { t } from "../../messages/language";
import { StateMark } from "../../states/StateMark";
import { AGE_SHOWN_MS, sinceText, stateWord } from "../../states/stateText";
import { partsOf } from "../wall/parts";

function Fact({ name, id, title, children }: { name: string; id: string; title?: string; children: ComponentChildren }) {
  return (
    <div class="fact" title={title}>
      <dt>{name}</dt>
      <dd data-testid={`fact-${id}`}>{children}</dd>
    </div>
  );
}

function LastSample({ machine }: { machine: Machine }) {
  const ms = machine.sampleMs.value;
  const age = ms === null ? null : clock.value - ms;
  const text = () => {
    if (age === null) return t("age.never");
    return age <= AGE_SHOWN_MS ? t("age.now") : t("age.ago", { duration: formatDuration(age) });
  };
  return (
    <Fact name={t("age.label")} id="age" {...(ms === null ? {} : { title: fullTime(ms) })}>
      {text()}
    </Fact>
  );
}

function PartsFact({ machine }: { machine: Machine }) {
  const parts = partsOf(machine.sample.value);
  if (!parts) return <Fact name={t("machine.parts")} id="parts">{t("machine.notReported")}</Fact>;
  const { done, planned } = parts;
  return (
    <Fact name={t("machine.parts")} id="parts">
      {planned === null ? done : t("machine.partsPlanned", { done, planned })}
      {planned !== null && (
        <span class="tile-bar" aria-hidden="true">
          <span style={{ width: `${Math.min(100, (100 * done) / planned)}%` }} />
        </span>
      )}
    </Fact>
  );
}

function Facts({ machine }: { machine: Machine }) {
  const sample = machine.sample.value;
  const line = sample?.active_program_line;
  const job = [sample?.program, typeof line === "number" && t("machine.line", { line })].filter(Boolean).join(": ");
  const alarm = sample?.extras?.["alarm_code"];
  return (
    <dl class="facts" data-stale={machine.stale.value}>
      {typeof alarm === "number" && alarm !== 0 && (
        <Fact name={t("machine.alarm")} id="alarm">
          {alarm}
        </Fact>
      )}
      <Fact name={t("machine.program")} id="program">
        {job || t("machine.notReported")}
      </Fact>
      <PartsFact machine={machine} />
      <Fact name={t("machine.mode")} id="mode">
        {sample?.mode ?? t("machine.notReported")}
      </Fact>
      <Fact name={t("machine.edge")} id="edge">
        {[machine.site.value, machine.edge.value].filter(Boolean).join(" / ") || t("machine.notReported")}
      </Fact>
      <LastSample machine={machine} />
    </dl>
  );
}

export function Headline({ machine }: { machine: Machine }) {
  const state = machine.state.value;
  const sinceMs = machine.sinceMs.value;
  return (
    <header class="headline">
      <h1 class="machine-name">{machine.id}</h1>
      <p
        class="headline-state state-chip"
        data-testid="machine-state"
        data-state={state}
        title={sinceMs === null ? undefined : fullTime(sinceMs)}
      >
        <StateMark state={state} size={20} />
        <b>{stateWord(state)}</b>
        <span>{sinceText(sinceMs, clock.value)}</span>
      </p>
      <Facts machine={machine} />
    </header>
  );
}
