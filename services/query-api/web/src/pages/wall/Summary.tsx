/** Machines per state: the summary of the hall, and the filter of the wall. */
import { t } from "../../messages/language";
import { setParams } from "../../routing/router";
import { StateMark } from "../../states/StateMark";
import { STATES, type State } from "../../states/states";
import { stateWord } from "../../states/stateText";
import { toggleState, type WallFilter } from "./filter";

/** Above this many machines a name is found faster by typing. */
const SEARCH_FROM = 12;

interface SummaryProps {
  counts: ReadonlyMap<State, number>;
  total: number;
  filter: WallFilter;
  outside: number;
}

function StateFilter({ state, count, filter }: { state: State; count: number; filter: WallFilter }) {
  return (
    <button
      type="button"
      class="state-filter"
      data-testid={`filter-${state}`}
      data-state={state}
      data-empty={count === 0}
      aria-pressed={filter.states.includes(state)}
      onClick={() => setParams({ state: toggleState(filter.states, state) })}
    >
      <StateMark state={state} />
      <strong>{count}</strong>
      <span>{stateWord(state)}</span>
    </button>
  );
}

function Outside({ count }: { count: number }) {
  const text = count === 1 ? t("wall.outsideOne") : t("wall.outside", { n: count });
  return (
    <button
      type="button"
      class="outside"
      data-testid="outside"
      data-state="alarm"
      onClick={() => setParams({ state: "alarm", q: null })}
    >
      <StateMark state="alarm" />
      {text}
    </button>
  );
}

export function Summary({ counts, total, filter, outside }: SummaryProps) {
  const states: State[] = counts.has("unknown") ? [...STATES, "unknown"] : [...STATES];
  const filtered = filter.states.length > 0 || filter.text !== "";
  return (
    <div class="summary" data-testid="summary">
      <p class="summary-total">{total === 1 ? t("wall.countOne") : t("wall.count", { n: total })}</p>
      <div class="summary-states" role="group" aria-label={t("wall.filter")}>
        {states.map((state) => (
          <StateFilter key={state} state={state} count={counts.get(state) ?? 0} filter={filter} />
        ))}
      </div>
      {(total > SEARCH_FROM || filter.text !== "") && (
        <input
          type="search"
          class="summary-search"
          data-testid="search"
          aria-label={t("wall.search")}
          placeholder={t("wall.search")}
          value={filter.text}
          onInput={(event) => setParams({ q: event.currentTarget.value }, "replace")}
        />
      )}
      {filtered && (
        <button type="button" class="quiet" data-testid="show-all" onClick={() => setParams({ state: null, q: null })}>
          {t("wall.showAll")}
        </button>
      )}
      {outside > 0 && <Outside count={outside} />}
    </div>
  );
}
