/** A calm bar while the live connection is away. The live region stays in place so that screen readers notice it. */
import { fullTime, clockTime } from "../format/time";
import { clock } from "../live/clock";
import { connection, edges } from "../live/connection";
import { t } from "../messages/language";
import { silenceText, silentEdges } from "./edgeText";

/** Lines of silent edges; more are counted. */
const EDGES_MAX = 3;

function textOf(database: boolean, lostMs: number | null): string {
  if (lostMs === null) return t(database ? "connection.databaseNever" : "connection.never");
  return t(database ? "connection.database" : "connection.bar", { time: clockTime(lostMs) });
}

function SilentEdges() {
  const silent = silentEdges(edges.value ?? []);
  if (connection.value.state !== "live" || silent.length === 0) return null;
  const more = silent.length - EDGES_MAX;
  return (
    <div class="connection-bar" data-testid="edges-bar">
      {silent.slice(0, EDGES_MAX).map((edge) => (
        <p key={`${edge.site}/${edge.edge}`}>{silenceText(edge, clock.value)}</p>
      ))}
      {more > 0 && <p>{t("edge.more", { n: more })}</p>}
    </div>
  );
}

export function ConnectionBar() {
  const { state, lostMs, databaseMessage } = connection.value;
  return (
    <div role="status">
      {state === "lost" && (
        <p class="connection-bar" data-testid="connection-bar" title={lostMs === null ? undefined : fullTime(lostMs)}>
          {textOf(databaseMessage !== null, lostMs)}
          {databaseMessage && <span class="connection-detail">{databaseMessage}</span>}
        </p>
      )}
      <SilentEdges />
    </div>
  );
}
