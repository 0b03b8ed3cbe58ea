/** What the wall shows, as it stands in the URL: `?state=alarm,hold&q=mill`. */
import { ALL_STATES, type State } from "../../states/states";
import type { Placed } from "./order";

export interface WallFilter {
  /** Empty: every state. */
  states: readonly State[];
  /** Part of a name, in lower case; empty: every name. */
  text: string;
}

export function readFilter(state: string | null, q: string | null): WallFilter {
  const words = (state ?? "").split(",");
  return { states: ALL_STATES.filter((known) => words.includes(known)), text: (q ?? "").trim().toLowerCase() };
}

export function matches(filter: WallFilter, machine: Placed): boolean {
  if (filter.states.length > 0 && !filter.states.includes(machine.state)) return false;
  return machine.id.toLowerCase().includes(filter.text);
}

/** The new value of `state` in the URL when a state is switched on or off; null: no filter. */
export function toggleState(states: readonly State[], state: State): string | null {
  const next = states.includes(state) ? states.filter((other) => other !== state) : [...states, state];
  return next.length === 0 ? null : ALL_STATES.filter((known) => next.includes(known)).join(",");
}

export function alarmsOutside(filter: WallFilter, machines: readonly Placed[]): number {
  return machines.filter((machine) => machine.state === "alarm" && !matches(filter, machine)).length;
}
