/** Whether the page is live: a mark and a word in the header. */
import { connection } from "../live/connection";
import { t } from "../messages/language";

export function ConnectionMark() {
  const { state } = connection.value;
  return (
    <span class="connection" data-testid="connection" data-state={state}>
      <svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">
        {state === "live" ? (
          <circle cx="6" cy="6" r="4.5" fill="currentColor" />
        ) : (
          <circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="4 2.5" />
        )}
      </svg>
      {t(`connection.${state}`)}
    </span>
  );
}
