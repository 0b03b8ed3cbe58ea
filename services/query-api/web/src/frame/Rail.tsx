/** The pages: a rail at the left on wide screens, a bar at the bottom on the phone. Only pages that exist are listed. */
import type { JSX } from "preact";
import { t } from "../messages/language";
import type { MessageKey } from "../messages/messages";
import { pageHref, route, type Route } from "../routing/router";

interface Entry {
  path: string;
  label: MessageKey;
  pages: readonly Route["page"][];
  icon: JSX.Element;
}

const ENTRIES: readonly Entry[] = [
  {
    path: "/",
    label: "nav.wall",
    pages: ["wall", "machine"],
    icon: <path d="M3 4h7v6H3zM14 4h7v6h-7zM3 14h7v6H3zM14 14h7v6h-7z" />,
  },
];

export function Rail() {
  const page = route.value.page;
  return (
    <nav class="rail" aria-label={t("nav.label")}>
      {ENTRIES.map((entry) => (
        <a
          key={entry.path}
          class="rail-link"
          href={pageHref(entry.path)}
          aria-current={page === entry.pages[0] ? "page" : undefined}
          data-within={entry.pages.includes(page)}
        >
          <svg width="24" height="24" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.75" aria-hidden="true">
            {entry.icon}
          </svg>
          <span>{t(entry.label)}</span>
        </a>
      ))}
    </nav>
  );
}
