/** The states a machine can be in, their order everywhere, and which of them is trouble. */

export const STATES = ["running", "idle", "hold", "alarm", "offline", "no_data"] as const;
/** `no_data`: nothing is known. `unknown`: the machine reports a word that nobody has defined. */
export type State = (typeof STATES)[number] | "unknown";
export const ALL_STATES: readonly State[] = [...STATES, "unknown"];

/** Trouble first on the wall: lower comes earlier. */
const RANK: Record<State, number> = { alarm: 0, hold: 1, offline: 2, no_data: 3, unknown: 4, idle: 5, running: 6 };

export function toState(word: string | null | undefined): State {
  return (STATES as readonly string[]).includes(word ?? "") ? (word as State) : "unknown";
}

export function rankOf(state: State): number {
  return RANK[state];
}
