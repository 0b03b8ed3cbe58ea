import { useLayoutEffect, useRef } from "preact/hooks";
import type { Machine } from "../../live/fleet";
import { Tile } from "./Tile";

/** The tiles in their order. When the order changes, the keyboard's focus stays on its machine. */
export function TileGrid({ machines, density }: { machines: readonly Machine[]; density: "roomy" | "dense" }) {
  const list = useRef<HTMLUListElement>(null);
  const focused = document.activeElement?.closest<HTMLElement>("[data-machine]")?.dataset["machine"];
  useLayoutEffect(() => {
    if (focused === undefined || document.activeElement !== document.body) return;
    list.current?.querySelector<HTMLElement>(`[data-machine="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  });
  return (
    <ul class="tiles" data-density={density} ref={list}>
      {machines.map((machine) => (
        <li key={machine.id} class="tile-slot">
          <Tile machine={machine} />
        </li>
      ))}
    </ul>
  );
}
