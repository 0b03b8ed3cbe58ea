/** Product name, connection, and the two choices of the reader: language and colours. */
import { chooseLanguage, language, LANGUAGE_NAMES, LANGUAGES, t } from "../messages/language";
import type { Language } from "../messages/messages";
import { pageHref } from "../routing/router";
import { ConnectionMark } from "./ConnectionMark";
import { chooseTheme, theme, THEMES, type Theme } from "./theme";

function LanguageChoice() {
  return (
    <label class="choice">
      <span class="hidden">{t("language.label")}</span>
      <select
        data-testid="language"
        value={language.value}
        onChange={(event) => chooseLanguage(event.currentTarget.value as Language)}
      >
        {LANGUAGES.map((name) => (
          <option key={name} value={name} lang={name}>
            {LANGUAGE_NAMES[name]}
          </option>
        ))}
      </select>
    </label>
  );
}

function ThemeChoice() {
  return (
    <label class="choice">
      <span class="hidden">{t("theme.label")}</span>
      <select
        data-testid="theme"
        value={theme.value}
        onChange={(event) => chooseTheme(event.currentTarget.value as Theme)}
      >
        {THEMES.map((name) => (
          <option key={name} value={name}>
            {t(`theme.${name}`)}
          </option>
        ))}
      </select>
    </label>
  );
}

export function Header() {
  return (
    <header class="header">
      <a class="brand" href={pageHref("/")}>
        {t("product")}
      </a>
      <ConnectionMark />
      <div class="choices">
        <LanguageChoice />
        <ThemeChoice />
      </div>
    </header>
  );
}
