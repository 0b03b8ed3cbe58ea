/** The signals of a machine: unit, decimals, and how each is charted. */
import type { NumericField } from "../../api/types";
import { formatNumber } from "../../format/number";

export interface FieldSpec {
  field: NumericField;
  unit: string;
  decimals: number;
}

export interface ChartSpec extends FieldSpec {
  /** The y axis starts at 0 and reaches at least to this; null: no natural zero, the axis follows the values. */
  reach: number | null;
}

export const SPECS: Record<NumericField, FieldSpec> = {
  spindle_speed: { field: "spindle_speed", unit: "rpm", decimals: 0 },
  spindle_load_percent: { field: "spindle_load_percent", unit: "%", decimals: 1 },
  temperature: { field: "temperature", unit: "°C", decimals: 1 },
  feed_rate_actual: { field: "feed_rate_actual", unit: "mm/min", decimals: 0 },
  total_power_kw: { field: "total_power_kw", unit: "kW", decimals: 2 },
  x_pos_mm: { field: "x_pos_mm", unit: "mm", decimals: 2 },
  y_pos_mm: { field: "y_pos_mm", unit: "mm", decimals: 2 },
  z_pos_mm: { field: "z_pos_mm", unit: "mm", decimals: 2 },
};

export const CHARTS: readonly ChartSpec[] = [
  { ...SPECS.spindle_speed, reach: 100 },
  { ...SPECS.spindle_load_percent, reach: 100 },
  { ...SPECS.temperature, reach: null },
  { ...SPECS.feed_rate_actual, reach: 100 },
  { ...SPECS.total_power_kw, reach: 1 },
];

/** Everything asked of `/series`: the charts, and the axes for their lowest and highest value. */
export const HISTORY_FIELDS: readonly NumericField[] = Object.keys(SPECS) as NumericField[];

export function withUnit(value: number, spec: FieldSpec): string {
  return `${formatNumber(value, spec.decimals)} ${spec.unit}`;
}
