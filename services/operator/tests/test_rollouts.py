"""A profile's change on its way: who gets it when, and what ends it."""

from collections.abc import Iterable

import pytest

from cncmon_core.edge_documents import Edge
from cncmon_core.machine import Rollout, Signal
from cncmon_core.resource_status import RolloutStatus
from cncmon_operator.rollouts import Rollouts, Step, View, revision_of

NEW = "b"


class Fleet:
    """Edges as a rollout sees them; each has one machine, which answers unless it is said otherwise."""

    def __init__(self, number: int, how: Rollout | None = None) -> None:
        self.how = how or Rollout(soak_seconds=30, timeout_seconds=300)
        self.rollouts = Rollouts()
        self.now_s = 1000.0
        self.status: RolloutStatus | None = None
        self.has: set[Edge] = set()
        self.silent: set[Edge] = set()
        self.behind: set[Edge] = set()
        self.refused: dict[Edge, str] = {}
        self.ill: set[Edge] = set()
        self.edges = [("hall", f"e{n}") for n in range(number)]

    def view(self, edge: Edge) -> View:
        ill = edge in self.ill
        return View(
            has_it=edge in self.has,
            fresh=edge not in self.silent,
            applied=edge not in self.behind and edge not in self.silent,
            refused=self.refused.get(edge, ""),
            answering=frozenset() if ill else frozenset({"m"}),
            unwell={"m": "temperature: illegal address"} if ill else {},
        )

    def step(self, after_s: float = 0.0) -> Step:
        """Let time pass, look, and write the documents as it says."""
        self.now_s += after_s
        views = {edge: self.view(edge) for edge in self.edges}
        step = self.rollouts.step("mill", self.how, NEW, self.status, views, self.now_s)
        self.status, self.has = step.status, set(step.given)
        return step

    def numbers(self, edges: Iterable[Edge]) -> list[int]:
        return sorted(self.edges.index(edge) for edge in edges)

    @property
    def phase(self) -> str:
        assert self.status is not None
        return self.status.phase


def test_edges_get_it_one_after_the_other_each_after_its_soak() -> None:
    fleet = Fleet(3)
    assert fleet.numbers(fleet.step().given) == [0]
    assert fleet.numbers(fleet.step(1).given) == [0]
    assert fleet.numbers(fleet.step(29).given) == [0]
    assert fleet.numbers(fleet.step(1).given) == [0, 1]
    fleet.step(1)
    assert fleet.numbers(fleet.step(30).given) == [0, 1, 2]
    fleet.step(1)
    assert fleet.phase == "Progressing"
    last = fleet.step(30)
    assert (fleet.phase, last.status.edges_done, last.status.edges_total, last.again_s) == ("Complete", 3, 3, None)


def test_as_many_at_once_as_are_asked_for() -> None:
    fleet = Fleet(5, Rollout(edges_at_once=2, soak_seconds=10))
    given = []
    for _ in range(12):
        given.append(len(fleet.step(10).given))
        if fleet.phase == "Complete":
            break
    assert given[:3] == [2, 2, 4]
    assert fleet.phase == "Complete"
    assert given[-1] == 5


@pytest.mark.parametrize("on_failure", ["RollBack", "Stop"])
def test_what_an_edge_refuses_ends_it(on_failure: str) -> None:
    fleet = Fleet(3, Rollout(soak_seconds=0, on_failure=on_failure))  # type: ignore[arg-type]
    fleet.step()
    fleet.step(1)
    fleet.refused[fleet.edges[1]] = "Machine m: no such driver"
    ended = fleet.step(1)
    assert fleet.phase == {"RollBack": "RolledBack", "Stop": "Stopped"}[on_failure]
    assert ended.status.message == "hall/e1: refused: Machine m: no such driver"
    kept = [] if on_failure == "RollBack" else [0, 1]
    assert fleet.numbers(ended.given) == kept
    # It stays ended, also for a process that was not there.
    fleet.refused, fleet.rollouts = {}, Rollouts()
    assert fleet.numbers(fleet.step(100).given) == kept
    assert fleet.phase == ended.status.phase


def test_signals_that_are_lost_end_it_at_once() -> None:
    fleet = Fleet(2)
    fleet.step()
    fleet.step(1)
    fleet.ill.add(fleet.edges[0])
    fleet.step(5)
    assert fleet.phase == "RolledBack"
    assert fleet.status is not None
    assert fleet.status.message == "hall/e0: lost signals: m: temperature: illegal address"


def test_an_edge_that_never_gets_well_ends_it_after_a_while() -> None:
    fleet = Fleet(2)
    fleet.step()
    fleet.ill.add(fleet.edges[0])
    fleet.step(299)
    assert fleet.phase == "Progressing"
    fleet.step(2)
    assert fleet.phase == "RolledBack"
    behind = Fleet(2)
    behind.behind.add(behind.edges[0])
    behind.step()
    assert behind.step(301).status.message == "hall/e0: not well after 300 s: it does not run the change"


def test_what_was_ill_before_is_no_reason() -> None:
    fleet = Fleet(2)
    fleet.ill.add(fleet.edges[0])
    fleet.step()
    fleet.step(1)
    assert fleet.numbers(fleet.step(30).given) == [0, 1]


def test_an_edge_that_falls_silent_with_it_ends_it_and_one_that_was_before_gets_it_last() -> None:
    fleet = Fleet(3)
    fleet.silent.add(fleet.edges[0])
    assert fleet.numbers(fleet.step().given) == [1]
    fleet.step(1)
    assert fleet.numbers(fleet.step(30).given) == [1, 2]
    fleet.step(1)
    assert fleet.numbers(fleet.step(30).given) == [0, 1, 2]
    fleet.step(1)
    assert fleet.phase == "Complete"

    fleet = Fleet(2)
    fleet.step()
    fleet.step(1)
    fleet.silent.add(fleet.edges[0])
    fleet.step(1)
    assert fleet.phase == "RolledBack"
    assert fleet.status is not None
    assert fleet.status.message == "hall/e0: fell silent"


def test_another_process_watches_anew_and_takes_nothing_back() -> None:
    fleet = Fleet(2)
    fleet.step()
    fleet.step(29)
    fleet.rollouts = Rollouts()
    assert fleet.numbers(fleet.step(1).given) == [0]
    assert fleet.numbers(fleet.step(29).given) == [0]
    assert fleet.numbers(fleet.step(1).given) == [0, 1]


def test_a_profile_that_no_machine_uses_is_done() -> None:
    fleet = Fleet(0)
    fleet.step()
    assert fleet.phase == "Complete"


def test_a_revision_tells_states_apart() -> None:
    one, two = Signal(name="a", register=1), Signal(name="a", register=2)
    assert revision_of([one]) == revision_of([Signal(name="a", register=1)])
    assert revision_of([one]) != revision_of([two])
    assert len(revision_of([])) == 10
