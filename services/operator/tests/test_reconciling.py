"""What is put together without asking anybody: documents, statuses, the queue, the store."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from cncmon_core import edge_config
from cncmon_core.edge_documents import Stored
from cncmon_operator import resources, status, wanted
from cncmon_operator.errors import ForeignError
from cncmon_operator.heartbeats import Beat, Configuration, MachineBeat
from cncmon_operator.queue import EdgeQueue
from cncmon_operator.resources import Resource
from cncmon_operator.status import Heard, Said, Written
from cncmon_operator.store import Store
from testkit.waiting import WAIT_S_MAX

pytestmark = pytest.mark.virtual_time

EDGE = ("hall", "e1")
OURS = "operator/plant"
NOW = datetime(2026, 3, 1, 6, tzinfo=UTC)


def raw(name: str, kind: str = "Machine", *, deleting: bool = False, **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"signals": [{"name": "temperature", "register": 1}]}
    if kind == "Machine":
        spec = {"site": "hall", "edge": "e1", "connection": {"modbus": {"host": "a"}}} | spec
    metadata = {"name": name, "uid": f"uid-{name}", "generation": 1, "managedFields": [{"manager": "kubectl"}]}
    if deleting:
        metadata["deletionTimestamp"] = "2026-03-01T06:00:00Z"
    return {"kind": kind, "metadata": metadata | more.pop("metadata", {}), "spec": spec | more.pop("spec", {})} | more


def read(name: str, kind: str = "Machine", **more: Any) -> Resource:
    return resources.read(raw(name, kind, **more))


def stored(*names: str, writer: str = OURS, revision: int = 7) -> Stored:
    asked = wanted.of([read(name) for name in names], {})
    return Stored(edge_config.make(*EDGE, revision, asked.machines.values()), 9, revision, writer=writer)


# --- resources ------------------------------------------------------------------------------------------------------


def test_what_cant_be_read_is_still_known_by_name_and_edge() -> None:
    found = read("m1", spec={"pollIntervalMs": "fast"})
    assert (found.name, found.edge, found.document) == ("m1", EDGE, None)
    (fault,) = found.faults
    assert fault.path == "$.spec.pollIntervalMs"
    assert "a whole number" in fault.problem
    for spec in (None, 7, {"site": 3}):
        assert resources.read({"kind": "Machine", "metadata": {"name": "m"}, "spec": spec}).edge is None


def test_a_fault_between_fields_is_one_too() -> None:
    found = read("m1", spec={"signals": [{"name": "door", "register": 65535, "type": "float32"}]})
    assert [fault.path for fault in found.faults] == ["$.spec.signals[0].register"]


# --- store ----------------------------------------------------------------------------------------------------------


def test_only_what_matters_to_others_names_an_edge() -> None:
    store = Store()
    assert store.put(read("m1")) == {EDGE}
    assert store.put(read("m1")) == set()
    assert store.put(read("m1", status={"state": "running"})) == set()
    assert store.put(read("m1", metadata={"labels": {"a": "b"}})) == set()
    assert store.put(read("m1", metadata={"generation": 2})) == {EDGE}
    assert store.put(read("m1", metadata={"generation": 2}, deleting=True)) == {EDGE}
    assert store.remove("Machine", "m1") == {EDGE}
    assert store.of_edge(EDGE) == []
    assert store.remove("Machine", "m1") == set()


def test_a_move_names_both_edges_and_a_profile_those_of_its_machines() -> None:
    store = Store()
    store.put(read("m1", spec={"profileRef": {"name": "mill"}}))
    moved = read("m1", spec={"edge": "e2", "profileRef": {"name": "mill"}}, metadata={"generation": 2})
    assert store.put(moved) == {EDGE, ("hall", "e2")}
    assert store.of_edge(EDGE) == []
    assert store.put(read("mill", "MachineProfile")) == {("hall", "e2")}
    assert store.put(read("lathe", "MachineProfile")) == set()


def test_a_list_tells_what_is_gone() -> None:
    store = Store()
    for name in ("m1", "m2"):
        store.put(read(name))
    assert store.replace("Machine", [read("m2")]) == {EDGE}
    assert list(store.machines) == ["m2"]
    assert store.replace("Machine", [read("m2")]) == set()


def test_a_status_written_does_not_bring_back_an_older_resource() -> None:
    store = Store()
    old = read("m1")
    store.put(old)
    store.put(read("m1", metadata={"generation": 2}))
    store.note_status(old, {"state": "idle"})
    assert (store.machines["m1"].generation, store.machines["m1"].status) == (2, {"state": "idle"})
    store.note_status(old._replace(uid="another"), {"state": "alarm"})
    assert store.machines["m1"].status == {"state": "idle"}


# --- documents ------------------------------------------------------------------------------------------------------


def document(machines: list[Resource], there: Stored, profiles: list[Resource] | None = None) -> Any:
    asked = wanted.of(machines, {one.name: one for one in profiles or ()})
    made = wanted.document(EDGE, asked, there, OURS)
    return None if made is None else (made.revision, sorted(made.by_name))


def test_a_document_is_written_where_it_differs_and_counts_up() -> None:
    nothing = Stored(None, 0, 0)
    assert document([], nothing) is None
    assert document([read("m1")], nothing) == (1, ["m1"])
    assert document([read("m1")], stored("m1")) is None
    assert document([read("m1"), read("m2")], stored("m1")) == (8, ["m1", "m2"])
    assert document([read("m1", deleting=True)], stored("m1")) == (8, [])
    assert document([], stored("m1")) == (8, [])


def test_what_can_t_be_read_is_written_over_with_a_higher_revision() -> None:
    assert document([read("m1")], Stored(None, 40, 41, "not JSON")) == (42, ["m1"])
    assert document([], Stored(None, 40, 41, "not JSON")) == (42, [])


@pytest.mark.parametrize(
    "bad",
    [
        {"spec": {"pollIntervalMs": "fast"}},
        {"spec": {"profileRef": {"name": "none"}}},
        {"spec": {"signals": [{"name": "door", "register": 1, "bit": 1, "type": "int32"}]}},
    ],
    ids=["unreadable", "no profile", "contradictory"],
)
def test_a_machine_that_cant_be_used_keeps_what_the_edge_has(bad: dict[str, Any]) -> None:
    assert document([read("m1", **bad), read("m2")], stored("m1")) == (8, ["m1", "m2"])
    assert document([read("m1", **bad), read("m2")], stored()) == (8, ["m2"])


def test_a_profile_with_a_fault_is_none_to_its_machines() -> None:
    machine = read("m1", spec={"profileRef": {"name": "mill"}, "signals": []})
    good, bad = read("mill", "MachineProfile"), read("mill", "MachineProfile", spec={"signals": 3})
    assert document([machine], stored(), [good]) == (8, ["m1"])
    asked = wanted.of([machine], {"mill": bad})
    assert "MachineProfile 'mill' can't be used" in asked.faults["m1"][0].problem


def test_what_others_wrote_is_taken_over_only_if_nothing_is_lost() -> None:
    theirs = stored("m1", "m2", writer="")
    assert document([], theirs) is None
    with pytest.raises(ForeignError, match="without a Machine resource: m2"):
        document([read("m1")], theirs)
    assert document([read("m1"), read("m2")], theirs) == (8, ["m1", "m2"])
    assert document([read("m1"), read("m2", deleting=True)], theirs) == (8, ["m1"])


# --- statuses -------------------------------------------------------------------------------------------------------


def heard(age_s: float = 0, **more: Any) -> Heard:
    config = stored("m1").config
    assert config is not None
    fields: dict[str, Any] = {
        "machines": [MachineBeat("m1", "connected", NOW, machine_state="idle")],
        "config": Configuration(7, config.sha256),
        "received": NOW - timedelta(seconds=age_s),
    }
    return Heard.at(Beat(**(fields | more)), NOW, 90)


def conditions(made: Any) -> dict[str, tuple[str, str]]:
    return {one.type: (one.status, one.reason) for one in made.conditions}


def of_machine(now: Heard, written: Written | None = None, **more: Any) -> Any:
    resource = read("m1", **more)
    return status.of_machine(resource, resource.faults, written or Written(stored("m1").config), now, NOW)


def test_a_machine_is_ready_when_all_is_true() -> None:
    made = of_machine(heard())
    assert set(conditions(made).values()) == {
        ("True", "Valid"), ("True", "Written"), ("True", "Running"), ("True", "Answers"), ("True", "AllTrue")
    }  # fmt: skip
    assert (made.state, made.protocol, made.applied_revision, made.last_value_time) == ("idle", "modbus", 7, NOW)


@pytest.mark.parametrize(
    ("now", "kind", "expected", "state"),
    [
        (Heard(None, False), "Applied", ("Unknown", "NeverHeard"), "offline"),
        (heard(91), "Connected", ("Unknown", "EdgeSilent"), "offline"),
        (heard(machines=[]), "Connected", ("False", "NotRead"), "offline"),
        (
            heard(machines=[MachineBeat("m1", "offline", error="no route")]),
            "Connected",
            ("False", "Offline"),
            "offline",
        ),
        (heard(machines=[MachineBeat("m1", "connecting")]), "Connected", ("False", "Connecting"), "offline"),
        (heard(config=Configuration(6, "another")), "Applied", ("False", "Pending"), "idle"),
    ],
    ids=["never", "silent", "not read", "offline", "connecting", "behind"],
)
def test_what_keeps_a_machine_from_being_ready_is_said(
    now: Heard, kind: str, expected: tuple[str, str], state: str
) -> None:
    made = of_machine(now)
    assert conditions(made)[kind] == expected
    assert conditions(made)["Ready"] == expected
    assert made.state == state


def test_what_was_refused_says_why() -> None:
    problem = edge_config.ConfigProblem("m1", "$.spec.connection", "no such driver")
    made = of_machine(heard(config=Configuration(6, "x", [problem], 7)))
    assert conditions(made)["Applied"] == ("False", "Refused")
    assert [(one.path, one.problem) for one in made.errors] == [("$.spec.connection", "no such driver")]
    other = edge_config.ConfigProblem("m2", "$.spec", "x")
    assert conditions(of_machine(heard(config=Configuration(6, "x", [other], 7))))["Applied"] == ("False", "Pending")


def test_a_document_that_is_not_written_says_why() -> None:
    trouble = Written(None, Said("False", "Refused", "too large"))
    assert conditions(of_machine(heard(), trouble))["Configured"] == ("False", "Refused")
    made = of_machine(heard(), spec={"pollIntervalMs": "fast"})
    assert conditions(made)["Accepted"] == ("False", "Invalid")
    (configured,) = [one for one in made.conditions if one.type == "Configured"]
    assert configured.message == "it can't be used; the edge keeps the last good form of it"


def test_since_when_stays_while_the_answer_does() -> None:
    before = of_machine(heard())
    later = NOW + timedelta(minutes=5)
    resource = read("m1", status=msgspec.to_builtins(before))
    silent = Heard(Beat(received=NOW), False)
    after = status.of_machine(resource, (), Written(stored("m1").config), silent, later)
    since = {one.type: one.last_transition_time for one in after.conditions}
    assert since == {"Accepted": NOW, "Configured": NOW, "Applied": later, "Connected": later, "Ready": later}


def test_every_condition_names_the_generation_that_was_looked_at() -> None:
    before = read("m1", status=msgspec.to_builtins(of_machine(heard())))
    changed = before._replace(generation=2)
    made = status.of_machine(changed, (), Written(stored("m1").config), heard(), NOW)
    assert {one.observed_generation for one in made.conditions} == {made.observed_generation} == {2}


def test_a_patch_is_what_differs_and_takes_away_what_is_no_more() -> None:
    made = of_machine(heard())
    same = read("m1", status=msgspec.to_builtins(made))
    assert status.patch(same, made) == {}
    old = read("m1", status=msgspec.to_builtins(made) | {"errors": [{"path": "$", "problem": "x"}], "state": "alarm"})
    assert status.patch(old, made) == {"state": "idle", "errors": None}


def test_times_and_figures_alone_are_no_news() -> None:
    assert not status.tells_news({"lastValueTime": "x", "bufferHoursLeft": 3})
    assert status.tells_news({"lastValueTime": "x", "state": "alarm"})


# --- queue ----------------------------------------------------------------------------------------------------------


async def test_an_edge_is_taken_once_however_often_it_is_named() -> None:
    queue = EdgeQueue()
    for _ in range(3):
        queue.add({EDGE})
    assert await queue.take() == EDGE
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.05)


async def test_an_edge_named_while_it_is_looked_at_comes_again_after() -> None:
    queue = EdgeQueue()
    queue.add({EDGE})
    await queue.take()
    queue.add({EDGE})
    again = asyncio.create_task(queue.take())
    await asyncio.sleep(0.05)
    assert not again.done(), "nobody else may look at it meanwhile"
    queue.done(EDGE)
    assert await asyncio.wait_for(again, WAIT_S_MAX) == EDGE


async def test_the_sooner_of_two_moments_counts() -> None:
    queue = EdgeQueue()
    queue.add({EDGE}, after_s=60)
    queue.add({EDGE}, after_s=0.1)
    queue.add({EDGE}, after_s=30)
    started_s = time.monotonic()
    await asyncio.wait_for(queue.take(), 20)
    assert time.monotonic() - started_s >= 0.09
