import { Notice } from "../frame/Notice";
import { t } from "../messages/language";
import { pageHref } from "../routing/router";

export function MissingPage() {
  return (
    <div class="page">
      <Notice name="missing" what={t("page.what")}>
        <p>
          <a href={pageHref("/")}>{t("page.do")}</a>
        </p>
      </Notice>
    </div>
  );
}
