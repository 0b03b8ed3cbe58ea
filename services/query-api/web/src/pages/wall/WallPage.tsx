/** The machine wall: is something wrong, and since when, in two seconds. */
import { useEffect, useMemo } from "preact/hooks";
import { ErrorNotice } from "../../frame/Notice";
import { useDelayed } from "../../frame/useDelayed";
import { listen } from "../../live/connection";
import { fleet } from "../../live/fleet";
import { useFleet } from "../../live/useFleet";
import { t } from "../../messages/language";
import { param } from "../../routing/router";
import { EmptyWall } from "./EmptyWall";
import { alarmsOutside, matches, readFilter } from "./filter";
import { comparePlaced, countStates } from "./order";
import { Summary } from "./Summary";
import { TileGrid } from "./TileGrid";

/** Up to this many machines get larger tiles. By the whole hall, not by the filter: tiles never change size under it. */
const ROOMY_MAX = 12;

function Skeleton() {
  return (
    <div class="tiles" data-density="roomy" aria-hidden="true">
      {[0, 1, 2, 3, 4].map((slot) => (
        <div key={slot} class="tile skeleton" />
      ))}
    </div>
  );
}

export function WallPage() {
  const loading = useFleet();
  useEffect(() => listen(null, null), []);
  const machines = fleet.machines.value;
  const late = useDelayed(machines === null && loading.error === null);
  const placed = useMemo(
    () =>
      (machines ?? []).map((machine) => ({ id: machine.id, state: machine.state.peek(), machine })).sort(comparePlaced),
    [machines],
  );
  const filter = readFilter(param("state"), param("q"));
  const shown = placed.filter((entry) => matches(filter, entry)).map((entry) => entry.machine);
  return (
    <div class="page wall" data-testid="wall-page">
      <h1 class="hidden">{t("wall.title")}</h1>
      {loading.error && <ErrorNotice error={loading.error} retry={loading.retry} />}
      {machines === null && late && <Skeleton />}
      {machines?.length === 0 && <EmptyWall />}
      {placed.length > 0 && (
        <>
          <Summary counts={countStates(placed)} total={placed.length} filter={filter} outside={alarmsOutside(filter, placed)} />
          {shown.length === 0 && <p class="muted">{t("wall.nothing")}</p>}
          <TileGrid machines={shown} density={placed.length <= ROOMY_MAX ? "roomy" : "dense"} />
        </>
      )}
    </div>
  );
}
