/** What happened, what still works, what to do: the one form for errors and empty pages. */
import type { ComponentChildren } from "preact";
import { ApiError } from "../api/client";
import { t } from "../messages/language";
import type { MessageKey } from "../messages/messages";

interface NoticeProps {
  name: string;
  what: string;
  works?: string;
  children?: ComponentChildren;
}

export function Notice({ name, what, works, children }: NoticeProps) {
  return (
    <section class="notice" data-testid={`notice-${name}`}>
      <h2>{what}</h2>
      {works && <p>{works}</p>}
      {children}
    </section>
  );
}

/** Text in which `this` is a command. */
function WithCode({ text }: { text: string }) {
  const parts = text.split("`");
  return <>{parts.map((part, i) => (i % 2 ? <code key={i}>{part}</code> : part))}</>;
}

const PREFIX = {
  unreachable: "error.unreachable",
  unavailable: "error.unavailable",
  refused: "error.refused",
  "not-found": "error.notFound",
} as const;

export function ErrorNotice({ error, retry }: { error: ApiError; retry: () => void }) {
  const prefix = PREFIX[error.kind];
  const say = (part: "what" | "works" | "do") =>
    t(`${prefix}.${part}` satisfies MessageKey, { status: error.status ?? "" });
  return (
    <div role="alert">
      <Notice name="error" what={say("what")} works={say("works")}>
        <p>
          <WithCode text={say("do")} />
        </p>
        {error.detail && <p class="notice-detail">{error.detail}</p>}
        <button type="button" onClick={retry}>
          {t("error.retry")}
        </button>
      </Notice>
    </div>
  );
}
