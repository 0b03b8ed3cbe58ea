/** Three marks in the header, one for each link of the chain: page to server, server to database, edges to server. */
import { connection, edges, type Connection } from "../live/connection";
import { t } from "../messages/language";
import { silentEdges } from "./edgeText";

/** `unknown`: the link before it is broken, so that nobody can tell. */
type LinkState = "good" | "broken" | "unknown";

function Link({ name, state, text }: { name: string; state: LinkState; text: string }) {
  return (
    <span class="link" data-testid={`link-${name}`} data-state={state} title={text}>
      <svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true">
        {state === "good" ? (
          <circle cx="6" cy="6" r="4.5" fill="currentColor" />
        ) : (
          <circle cx="6" cy="6" r="4.5" fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="4 2.5" />
        )}
      </svg>
      <span class="link-text">{text}</span>
    </span>
  );
}

function serverState({ state, databaseMessage }: Connection): LinkState {
  if (databaseMessage !== null) return "broken";
  return state === "live" ? "good" : "unknown";
}

function edgesState({ state }: Connection, silent: number): LinkState {
  if (state !== "live" || edges.value === null || edges.value.length === 0) return "unknown";
  return silent > 0 ? "broken" : "good";
}

export function ConnectionMark() {
  const now = connection.value;
  const page: LinkState = now.state === "live" || now.databaseMessage !== null ? "good" : now.state === "lost" ? "broken" : "unknown";
  const silent = silentEdges(edges.value ?? []).length;
  const all = edges.value?.length ?? 0;
  const heard = silent > 0 ? t("link.edgesSilent", { silent, all }) : all === 1 ? t("link.edge") : t("link.edges", { all });
  return (
    <span class="connection" data-testid="connection" data-state={now.state}>
      <Link name="page" state={page} text={t(`connection.${now.databaseMessage !== null ? "live" : now.state}`)} />
      <Link name="server" state={serverState(now)} text={t(`link.server.${serverState(now)}`)} />
      {all > 0 && <Link name="edges" state={edgesState(now, silent)} text={heard} />}
    </span>
  );
}
