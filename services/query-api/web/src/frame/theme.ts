/** Light or dark: the system's choice unless the user has made one. */
import { computed, effect, signal } from "@preact/signals";
import { recall, remember } from "./remember";

export const THEMES = ["auto", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

const asTheme = (name: string | null): Theme => THEMES.find((theme) => theme === name) ?? "auto";

export const theme = signal<Theme>(asTheme(recall("theme")));
const systemDark = signal(false);

/** What is shown: charts draw again when it changes. */
export const shownTheme = computed<"light" | "dark">(() => {
  if (theme.value !== "auto") return theme.value;
  return systemDark.value ? "dark" : "light";
});

export function chooseTheme(next: Theme): void {
  theme.value = next;
  remember("theme", next);
}

/** Sets `data-theme` on the document, now and at every change; called once at start. */
export function followTheme(): void {
  const query = matchMedia("(prefers-color-scheme: dark)");
  systemDark.value = query.matches;
  query.addEventListener("change", () => {
    systemDark.value = query.matches;
  });
  effect(() => {
    document.documentElement.dataset["theme"] = shownTheme.value;
  });
}
