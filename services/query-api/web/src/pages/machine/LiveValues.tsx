/** The newest values in four groups, each with its unit and what it was between lowest and highest in the window. */
import { formatDuration } from "../../format/duration";
import { formatNumber } from "../../format/number";
import { clock } from "../../live/clock";
import { connection } from "../../live/connection";
import type { Machine } from "../../live/fleet";
import { t } from "../../messages/language";
import type { MessageKey } from "../../messages/messages";
import { AGE_SHOWN_MS } from "../../states/stateText";
import { SPECS, type FieldSpec } from "./fields";
import { formatSpan, spanOf } from "./spanOf";
import type { History } from "./useHistory";

interface Group {
  title: MessageKey;
  specs: readonly FieldSpec[];
  /** Values that not every machine has: shown where they are reported. */
  extras: readonly { name: string; unit: string }[];
}

const GROUPS: readonly Group[] = [
  {
    title: "group.spindle",
    specs: [SPECS.spindle_speed, SPECS.spindle_load_percent],
    extras: [
      { name: "tool_number", unit: "" },
      { name: "tool_wear_percent", unit: "%" },
    ],
  },
  { title: "group.axes", specs: [SPECS.x_pos_mm, SPECS.y_pos_mm, SPECS.z_pos_mm], extras: [] },
  { title: "group.feed", specs: [SPECS.feed_rate_actual], extras: [{ name: "feed_override_percent", unit: "%" }] },
  { title: "group.power", specs: [SPECS.total_power_kw, SPECS.temperature], extras: [] },
];

const label = (name: string) => t(`field.${name}` as MessageKey);

function Value({ machine, spec, history }: { machine: Machine; spec: FieldSpec; history: History }) {
  void history.version.value;
  const value = machine.sample.value?.[spec.field] ?? null;
  const span = spanOf(history.series.column(spec.field));
  return (
    <div class="value">
      <dt>{label(spec.field)}</dt>
      <dd data-testid={`value-${spec.field}`} data-value={value ?? ""}>
        {value === null ? (
          <span class="value-none">{t("machine.notReported")}</span>
        ) : (
          <>
            <span class="value-number">{formatNumber(value, spec.decimals)}</span> {spec.unit}
          </>
        )}
      </dd>
      <dd class="value-span">{span ? formatSpan(span, spec.decimals) : t("value.spanNone")}</dd>
    </div>
  );
}

function Extra({ machine, name, unit }: { machine: Machine; name: string; unit: string }) {
  const sample = machine.sample.value;
  const value = name === "tool_number" ? sample?.tool_number : sample?.extras?.[name];
  if (typeof value !== "number") return null;
  return (
    <div class="value">
      <dt>{label(name)}</dt>
      <dd data-testid={`value-${name}`} data-value={value}>
        <span class="value-number">{formatNumber(value, 0)}</span> {unit}
      </dd>
    </div>
  );
}

export function LiveValues({ machine, history }: { machine: Machine; history: History }) {
  const ms = machine.sampleMs.value;
  const age = ms === null ? 0 : clock.value - ms;
  const old = age > AGE_SHOWN_MS;
  const grey = machine.stale.value || connection.value.state === "lost" || age > 5_000;
  return (
    <section class="values" aria-label={t("values.title")} data-testid="values" data-stale={grey}>
      <div class="chart-head">
        <h2>{t("values.title")}</h2>
        <span class="chart-note">
          {history.zoom ? t("values.noteZoomed") : t("values.note", { range: t(`range.${history.range}`) })}
        </span>
      </div>
      {GROUPS.map((group) => (
        <div key={group.title} class="value-group" data-group={group.title}>
          <h3>
            {t(group.title)}
            {old && <span class="value-age">{t("age.short", { duration: formatDuration(age) })}</span>}
          </h3>
          <dl>
            {group.specs.map((spec) => (
              <Value key={spec.field} machine={machine} spec={spec} history={history} />
            ))}
            {group.extras.map((extra) => (
              <Extra key={extra.name} machine={machine} {...extra} />
            ))}
          </dl>
        </div>
      ))}
    </section>
  );
}
