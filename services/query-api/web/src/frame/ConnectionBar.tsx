/** A calm bar while the live connection is away. The live region stays in place so that screen readers notice it. */
import { fullTime, clockTime } from "../format/time";
import { connection } from "../live/connection";
import { t } from "../messages/language";

export function ConnectionBar() {
  const { state, lostMs } = connection.value;
  return (
    <div role="status">
      {state === "lost" && (
        <p class="connection-bar" data-testid="connection-bar" title={lostMs === null ? undefined : fullTime(lostMs)}>
          {lostMs === null ? t("connection.never") : t("connection.bar", { time: clockTime(lostMs) })}
        </p>
      )}
    </div>
  );
}
