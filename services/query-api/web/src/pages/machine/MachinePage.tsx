/** One machine: what it does now, and how it got there. */
import { useEffect, useMemo } from "preact/hooks";
import { ChartGroup } from "../../charts/group";
import { ErrorNotice, Notice } from "../../frame/Notice";
import { useDelayed } from "../../frame/useDelayed";
import { listen } from "../../live/connection";
import { fleet, type Machine } from "../../live/fleet";
import { useFleet } from "../../live/useFleet";
import { t } from "../../messages/language";
import { pageHref, param, setParams } from "../../routing/router";
import { ChartStack } from "./ChartStack";
import { Headline } from "./Headline";
import { LiveValues } from "./LiveValues";
import { RangeChoice, resetZoom } from "./RangeChoice";
import { readRange, readZoom, widenZoom } from "./range";
import { Timeline } from "./Timeline";
import { ToolPath } from "./ToolPath";
import { useHistory } from "./useHistory";

function UnknownMachine({ id }: { id: string }) {
  useEffect(() => listen(null, null), []); // it may appear
  return (
    <Notice name="unknown-machine" what={t("unknown.what", { id })} works={t("unknown.works")}>
      <p>{t("unknown.do")}</p>
      <p>
        <a href={pageHref("/")}>{t("nav.wall")}</a>
      </p>
    </Notice>
  );
}

function zoomTo(fromMs: number, toMs: number): void {
  const zoom = widenZoom(fromMs, toMs);
  setParams({ from: String(zoom.fromMs), to: String(zoom.toMs) });
}

function KnownMachine({ machine }: { machine: Machine }) {
  const range = readRange(param("range"));
  const [from, to] = [param("from"), param("to")];
  const zoom = useMemo(() => readZoom(from, to), [from, to]);
  const { history, loading, error, retry } = useHistory(machine, range, zoom);
  const late = useDelayed(loading);
  const group = useMemo(() => new ChartGroup(zoomTo, resetZoom), []);
  return (
    <>
      <Headline machine={machine} />
      {error && <ErrorNotice error={error} retry={retry} />}
      <RangeChoice range={range} zoom={zoom} />
      <div class="machine-history" data-loading={late} aria-busy={loading}>
        <Timeline history={history} group={group} />
        <LiveValues machine={machine} history={history} />
        <div class="machine-charts">
          <ChartStack history={history} group={group} />
          <ToolPath history={history} />
        </div>
      </div>
    </>
  );
}

function Skeleton() {
  return (
    <div aria-hidden="true">
      <div class="skeleton headline-skeleton" />
      <div class="skeleton charts-skeleton" />
    </div>
  );
}

export function MachinePage({ id }: { id: string }) {
  const loading = useFleet();
  const known = fleet.machines.value;
  const machine = known === null ? undefined : fleet.byId.get(id);
  const late = useDelayed(known === null && loading.error === null);
  return (
    <div class="page machine" data-testid="machine-page" data-machine={id}>
      {!machine && <h1 class="machine-name">{id}</h1>}
      {loading.error && <ErrorNotice error={loading.error} retry={loading.retry} />}
      {known === null && late && <Skeleton />}
      {known !== null && !machine && <UnknownMachine id={id} />}
      {machine && <KnownMachine machine={machine} />}
    </div>
  );
}
