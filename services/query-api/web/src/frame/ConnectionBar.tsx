/** A calm bar while the live connection is away. The live region stays in place so that screen readers notice it. */
import { fullTime, clockTime } from "../format/time";
import { connection } from "../live/connection";
import { t } from "../messages/language";

function textOf(database: boolean, lostMs: number | null): string {
  if (lostMs === null) return t(database ? "connection.databaseNever" : "connection.never");
  return t(database ? "connection.database" : "connection.bar", { time: clockTime(lostMs) });
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
    </div>
  );
}
