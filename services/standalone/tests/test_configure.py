"""What Machine documents change in an edge's configuration, and what its heartbeat says of that."""

from typing import Any

import msgspec
import pytest

from cncmon_core import edge_config
from cncmon_core.machine import Machine
from cncmon_standalone.configure.change import FIELDS_SHOWN_MAX, difference, merge
from cncmon_standalone.configure.rollout import judge


def machine(name: str, *, signals: dict[str, int] | None = None, **spec: Any) -> Machine:
    document = {
        "apiVersion": "cncmon.dev/v1alpha1",
        "kind": "Machine",
        "metadata": {"name": name},
        "spec": {
            "connection": {"modbus": {"host": "h"}},
            "signals": [{"name": key, "register": at} for key, at in (signals or {"temperature": 0}).items()],
        }
        | spec,
    }
    return msgspec.convert(document, Machine)


def named(*machines: Machine) -> dict[str, Machine]:
    return {one.metadata.name: one for one in machines}


CURRENT = edge_config.make("default", "edge", 7, [machine("a"), machine("b"), machine("c")])


@pytest.mark.parametrize(
    ("given", "options", "verbs", "left"),
    [
        ([machine("a")], {}, {"a": "unchanged"}, "abc"),
        ([machine("a", pollIntervalMs=50)], {}, {"a": "configured"}, "abc"),
        ([machine("d")], {}, {"d": "created"}, "abcd"),
        ([machine("d"), machine("a")], {"prune": True}, {"a": "unchanged", **dict.fromkeys("bc", "removed")}, "ad"),
        ([], {"gone": {"b": "moved", "x": "moved"}}, {"b": "moved"}, "ac"),
        ([machine("a")], {"gone": {"c": "moved"}, "prune": True}, {"b": "removed", "c": "moved"}, "a"),
        ([], {"prune": True}, dict.fromkeys("abc", "removed"), ""),
    ],
)
def test_what_is_made_of_a_document(given: list[Machine], options: Any, verbs: dict[str, str], left: str) -> None:
    change = merge("default", "edge", CURRENT, named(*given), **options)
    assert verbs.items() <= {one.machine: one.verb for one in change.machines}.items()
    assert "".join(change.wanted.by_name) == left
    assert change.wanted.revision == 8
    assert change.changes == (set(verbs.values()) != {"unchanged"})


def test_the_first_document_of_an_edge() -> None:
    change = merge("default", "edge", None, named(machine("a")))
    assert (change.wanted.revision, [one.verb for one in change.machines]) == (1, ["created"])
    assert not merge("default", "edge", None, {}).changes


def test_a_profile_s_name_is_no_change() -> None:
    with_profile = machine("a", profileRef={"name": "lathe"})
    assert not merge("default", "edge", CURRENT, named(with_profile)).changes


def test_what_differs_is_said_field_by_field_and_signal_by_signal() -> None:
    old = machine("a", signals={"temperature": 0, "spindle_speed": 2})
    new = machine(
        "a",
        signals={"temperature": 1, "feed": 3},
        pollIntervalMs=50,
        connection={"modbus": {"host": "h2", "timeoutMs": 200}},
    )
    assert difference(old, new) == [
        'signal temperature: {"register":0} -> {"register":1}',
        'signal spindle_speed: {"register":2} -> none',
        'spec.connection.modbus.host: "h" -> "h2"',
        'signal feed: none -> {"register":3}',
        "spec.connection.modbus.timeoutMs: default -> 200",
        "spec.pollIntervalMs: default -> 50",
    ]
    many = machine("a", signals={f"s{n}": n for n in range(20)})
    assert len(difference(old, many)) == FIELDS_SHOWN_MAX + 1
    assert difference(old, many)[-1] == "and 16 more"


SHA = CURRENT.sha256


@pytest.mark.parametrize(
    ("config", "state"),
    [
        ({"revision": 7, "sha256": SHA, "source": "kv"}, "applied"),
        ({"revision": 7, "sha256": "of an earlier bucket's", "source": "disk"}, None),
        ({"revision": 6, "sha256": SHA, "source": "kv"}, None),
        ({"revision": 8, "sha256": "x", "source": "kv"}, "superseded"),
        (
            {"revision": 6, "refused_revision": 7, "errors": [{"machine": "a", "path": "$", "problem": "p"}]},
            "refused",
        ),
        ({"revision": 6, "refused_revision": 5, "errors": [{"machine": "a", "path": "$", "problem": "p"}]}, None),
        ({"revision": None, "sha256": SHA, "source": "files", "errors": []}, "fixed"),
    ],
)
def test_what_a_heartbeat_says_of_it(config: dict[str, Any], state: str | None) -> None:
    outcome = judge(msgspec.json.encode({"version": "9", "config": config}), CURRENT)
    assert (outcome.state if outcome else None) == state
    if outcome and state == "refused":
        assert [error.problem for error in outcome.errors] == ["p"]


@pytest.mark.parametrize("heartbeat", [b"", b"{}", b"\xff", b'{"config": 5}', b'{"machines": []}', b"[" * 100_000])
def test_a_heartbeat_that_says_nothing_of_it(heartbeat: bytes) -> None:
    assert judge(heartbeat, CURRENT) is None
