/** The states a machine can be in, their order everywhere, and which of them is trouble. */

export const STATES = ["running", "idle", "hold", "alarm", "offline"] as const;
/** `unknown`: the machine reports a word that nobody has defined. */
export type State = (typeof STATES)[number] | "unknown";
export const ALL_STATES: readonly State[] = [...STATES, "unknown"];

/** Trouble first on the wall: lower comes earlier. */
const RANK: Record<State, number> = { alarm: 0, hold: 1, offline: 2, unknown: 3, idle: 4, running: 5 };

export function toState(word: string | null | undefined): State {
  return (STATES as readonly string[]).includes(word ?? "") ? (word as State) : "unknown";
}

export function rankOf(state: State): number {
  return RANK[state];
}
