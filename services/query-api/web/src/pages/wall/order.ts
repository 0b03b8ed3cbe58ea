/** The order of the wall: trouble first, then by name with numbers counted ("mill-2" before "mill-10"). */
import { rankOf, type State } from "../../states/states";

const byName = new Intl.Collator("en", { numeric: true });

export interface Placed {
  id: string;
  state: State;
}

export function comparePlaced(a: Placed, b: Placed): number {
  return rankOf(a.state) - rankOf(b.state) || byName.compare(a.id, b.id);
}

export function countStates(machines: readonly Placed[]): Map<State, number> {
  const counts = new Map<State, number>();
  for (const { state } of machines) counts.set(state, (counts.get(state) ?? 0) + 1);
  return counts;
}
