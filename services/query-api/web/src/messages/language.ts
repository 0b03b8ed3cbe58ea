/** The chosen language, and `t`, which looks a message up in it. Components that call `t` re-render on a switch. */
import { effect, signal } from "@preact/signals";
import { remember, recall } from "../frame/remember";
import { MESSAGES, type Language, type MessageKey } from "./messages";

export const LANGUAGES = Object.keys(MESSAGES) as Language[];
export const LANGUAGE_NAMES: Record<Language, string> = { en: "English", de: "Deutsch" };

/** The first language of the browser's list that we have; English otherwise. */
export function pickLanguage(wanted: readonly string[]): Language {
  for (const tag of wanted) {
    const base = tag.toLowerCase().split("-")[0];
    const found = LANGUAGES.find((language) => language === base);
    if (found) return found;
  }
  return "en";
}

const wanted = typeof navigator === "undefined" ? [] : navigator.languages;
export const language = signal<Language>(pickLanguage([recall("language") ?? "", ...wanted]));

export function chooseLanguage(next: Language): void {
  language.value = next;
  remember("language", next);
}

/** The locale for numbers and times: the browser's own variant ("de-AT") where it is of the chosen language. */
export function locale(): string {
  const chosen = language.value;
  return wanted.find((tag) => tag.toLowerCase().startsWith(chosen)) ?? chosen;
}

export function fill(text: string, values: Record<string, string | number>): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

export function t(key: MessageKey, values: Record<string, string | number> = {}): string {
  return fill(MESSAGES[language.value][key], values);
}

/** Keeps the document's `lang` in step; called once at start. */
export function followLanguage(): void {
  effect(() => {
    document.documentElement.lang = language.value;
  });
}
