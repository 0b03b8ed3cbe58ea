/** The mark of a state: a shape of its own, so that it can be told without colour. */
import type { JSX } from "preact";
import type { State } from "./states";

const SHAPES: Record<State, JSX.Element> = {
  running: <circle cx="8" cy="8" r="6" fill="currentColor" />,
  idle: <circle cx="8" cy="8" r="5" fill="none" stroke="currentColor" stroke-width="2" />,
  hold: <path d="M3 2h4v12H3zM9 2h4v12H9z" fill="currentColor" />,
  alarm: <path d="M8 1.5 15.5 14.5H.5z" fill="currentColor" />,
  offline: <path d="M3 3l10 10M13 3 3 13" stroke="currentColor" stroke-width="2.5" />,
  no_data: <circle cx="8" cy="8" r="6" fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="2.7 2" />,
  unknown: (
    <path
      d="M5 5.5a3 3 0 1 1 4.2 2.7c-.8.4-1.2.9-1.2 1.8M8 12.2v1.6"
      fill="none"
      stroke="currentColor"
      stroke-width="2"
    />
  ),
};

/** Always set beside the state's word, therefore hidden from screen readers. */
export function StateMark({ state, size = 14 }: { state: State; size?: number }) {
  return (
    <svg class="mark" data-mark={state} width={size} height={size} viewBox="0 0 16 16" aria-hidden="true">
      {SHAPES[state]}
    </svg>
  );
}
