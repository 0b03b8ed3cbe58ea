import { Notice } from "../../frame/Notice";
import { t } from "../../messages/language";

/** A fresh installation: nothing is wrong, and this is the next step. */
export function EmptyWall() {
  return (
    <Notice name="empty" what={t("empty.what")} works={t("empty.works")}>
      <p>{t("empty.do")}</p>
      <pre>
        <code>cncmon up -f machine.yaml</code>
      </pre>
    </Notice>
  );
}
