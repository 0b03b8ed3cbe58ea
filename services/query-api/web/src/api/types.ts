/** The shapes that the query API sends. Times are RFC 3339 in UTC unless a name ends in `_ms` or says epoch ms. */

export type StateWord = "running" | "idle" | "hold" | "alarm" | "offline";

export interface Sample {
  machine_id: string;
  timestamp: string;
  /** °C */
  temperature: number | null;
  /** rpm */
  spindle_speed: number | null;
  x_pos_mm: number | null;
  y_pos_mm: number | null;
  z_pos_mm: number | null;
  /** mm/min */
  feed_rate_actual: number | null;
  spindle_load_percent: number | null;
  machine_state: string | null;
  active_program_line: number | null;
  total_power_kw: number | null;
  /** By the rule of all states; `machine_state` is the controller's own word. */
  state: StateWord | null;
  mode?: string;
  program?: string;
  part_count?: number;
  tool_number?: number;
  anomaly_score?: number;
  extras?: Record<string, number | string | boolean>;
}

/** One entry of `GET /machines`; the SSE event `machines` sends the same without `last_sample`. */
export interface MachineInfo {
  id: string;
  site: string | null;
  edge: string | null;
  /** `no_data` where stale; null: a word that the API does not know */
  state: string | null;
  /** null: longer ago than the API looked back (1 h) */
  state_since: string | null;
  stale: boolean;
  last_sample?: Sample | null;
}

export interface MachineList {
  now: string;
  machines: MachineInfo[];
  /** of a page that is not the last: what follows it */
  next_after?: string | null;
}

export interface LiveSamples {
  now: string;
  samples: Sample[];
}

/** An edge, as the SSE event `edges` tells of it. */
export interface LiveEdge {
  site: string;
  edge: string;
  /** Its last heartbeat; null: it is heard of. */
  silent_since: string | null;
  /** How many it owns. */
  machines: number;
}

export interface LiveEdges {
  now: string;
  edges: LiveEdge[];
}

/** The SSE event `status`, sent when the server's database goes or comes. */
export interface LiveStatus {
  database: "ok" | "unavailable";
  /** What is wrong and what to do, in English; empty when ok. */
  message: string;
}

type Column = (number | null)[];

/** `GET /machines/{id}/series`: buckets of `bucket_ms`, `times` are their starts in epoch ms; empty buckets hold nulls. */
export interface Series {
  from: string;
  to: string;
  bucket_ms: number;
  /** What was read: samples, or the rollup 10s, 1min or 1h. */
  source: string;
  /** false: some of the range waits to be computed. */
  complete: boolean;
  times: number[];
  fields: Record<string, { min: Column; mean: Column; max: Column }>;
  states: (string | null)[];
}

/** The numeric fields that are charted or shown live. */
export type NumericField =
  | "temperature"
  | "spindle_speed"
  | "x_pos_mm"
  | "y_pos_mm"
  | "z_pos_mm"
  | "feed_rate_actual"
  | "spindle_load_percent"
  | "total_power_kw";
