/** All machines the page knows, each with its own signals, so that one machine's news re-renders one tile only. */
import { batch, signal, type Signal } from "@preact/signals";
import type { MachineInfo, MachineList, Sample } from "../api/types";
import { toState, type State } from "../states/states";
import { BucketSeries } from "./buckets";

/** 10 minutes in 150 steps: about one step per pixel of a tile's sparkline. */
export const SPARK_SPAN_MS = 600_000;
export const SPARK_POINTS = 150;
export const SPARK_FIELD = "spindle_load_percent";

export interface Machine {
  readonly id: string;
  readonly site: Signal<string | null>;
  readonly edge: Signal<string | null>;
  readonly state: Signal<State>;
  /** Epoch ms; null: longer ago than the server looks back. */
  readonly sinceMs: Signal<number | null>;
  readonly stale: Signal<boolean>;
  readonly sample: Signal<Sample | null>;
  readonly sampleMs: Signal<number | null>;
  readonly spark: BucketSeries;
  /** Counts up when `spark` changed. */
  readonly sparkVersion: Signal<number>;
}

export interface Fleet {
  /** null until the first list has arrived. A new array whenever any state or the set changed: the moment for sorting. */
  readonly machines: Signal<readonly Machine[] | null>;
  readonly byId: Map<string, Machine>;
}

export function createFleet(): Fleet {
  return { machines: signal(null), byId: new Map() };
}

export const fleet = createFleet();

function createMachine(id: string): Machine {
  return {
    id,
    site: signal(null),
    edge: signal(null),
    state: signal("unknown"),
    sinceMs: signal(null),
    stale: signal(false),
    sample: signal(null),
    sampleMs: signal(null),
    spark: new BucketSeries([SPARK_FIELD], SPARK_SPAN_MS / SPARK_POINTS, SPARK_POINTS),
    sparkVersion: signal(0),
  };
}

/** Takes over one entry of the list; true if its state is news. */
function applyInfo(machine: Machine, info: MachineInfo): boolean {
  const state = toState(info.state);
  const news = state !== machine.state.peek();
  machine.site.value = info.site;
  machine.edge.value = info.edge;
  machine.state.value = state;
  machine.sinceMs.value = info.state_since === null ? null : Date.parse(info.state_since);
  machine.stale.value = info.stale;
  if (info.last_sample) applySample(machine, info.last_sample);
  return news;
}

function applySample(machine: Machine, sample: Sample): void {
  const timeMs = Date.parse(sample.timestamp);
  if (timeMs <= (machine.sampleMs.peek() ?? -Infinity)) return; // a replay after reconnecting, or out of order
  machine.sample.value = sample;
  machine.sampleMs.value = timeMs;
  machine.spark.add(timeMs, sample);
  machine.sparkVersion.value++;
}

/** A list of machines. `whole`: it names all there are, so that others have gone; otherwise it is about some only. */
export function applyMachines(into: Fleet, list: MachineList, whole: boolean): void {
  batch(() => {
    let news = into.machines.peek() === null;
    for (const info of list.machines) {
      let machine = into.byId.get(info.id);
      if (!machine) {
        machine = createMachine(info.id);
        into.byId.set(info.id, machine);
        news = true;
      }
      if (applyInfo(machine, info)) news = true;
    }
    if (whole && into.byId.size > list.machines.length) {
      const named = new Set(list.machines.map((info) => info.id));
      for (const id of into.byId.keys()) if (!named.has(id)) into.byId.delete(id);
      news = true;
    }
    if (news && (whole || into.machines.peek() !== null)) into.machines.value = [...into.byId.values()];
  });
}

/** New samples; one of a machine that no list has named yet waits for the list. */
export function applySamples(into: Fleet, samples: readonly Sample[]): void {
  batch(() => {
    for (const sample of samples) {
      const machine = into.byId.get(sample.machine_id);
      if (machine) applySample(machine, sample);
    }
  });
}
