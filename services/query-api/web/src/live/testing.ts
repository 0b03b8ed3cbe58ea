/** Samples and lists for tests. */
import type { MachineInfo, MachineList, Sample } from "../api/types";

export function sampleOf(machine: string, timeMs: number, values: Partial<Sample> = {}): Sample {
  return {
    machine_id: machine,
    timestamp: new Date(timeMs).toISOString(),
    temperature: null,
    spindle_speed: null,
    x_pos_mm: null,
    y_pos_mm: null,
    z_pos_mm: null,
    feed_rate_actual: null,
    spindle_load_percent: null,
    machine_state: "running",
    active_program_line: null,
    total_power_kw: null,
    state: "running",
    ...values,
  };
}

export function infoOf(id: string, state: string | null, more: Partial<MachineInfo> = {}): MachineInfo {
  return { id, site: "hall-1", edge: "edge-1", state, state_since: null, stale: false, ...more };
}

export function listOf(...machines: MachineInfo[]): MachineList {
  return { now: "2026-11-24T10:00:00Z", machines };
}
