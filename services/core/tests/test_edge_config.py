"""The configuration document of an edge: what is in it, and what is said of one that can't be used."""

import contextlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_core import edge_config, machine_files
from cncmon_core.edge_config import DOCUMENT_BYTES_MAX, MACHINES_MAX, PROBLEMS_MAX, EdgeConfig, decode, encode, make
from cncmon_core.errors import EdgeConfigError
from cncmon_core.machine import Machine
from testkit.work import counting

GOOD = Path(__file__).parent / "good_machines" / "00-good.yaml"
SITE, EDGE = "hall", "e1"


def machine(name: str = "good-1") -> Machine:
    found = machine_files.load([GOOD]).machines["good-1"]
    return msgspec.structs.replace(found, metadata=msgspec.structs.replace(found.metadata, name=name))


def document(*machines: Machine, revision: int = 7) -> dict[str, Any]:
    return dict(msgspec.json.decode(encode(make(SITE, EDGE, revision, machines or [machine()]))))


def refusal(data: bytes | dict[str, Any]) -> EdgeConfigError:
    with pytest.raises(EdgeConfigError) as caught:
        decode(data if isinstance(data, bytes) else msgspec.json.encode(data), SITE, EDGE)
    return caught.value


def test_what_is_written_is_what_is_read() -> None:
    config = make(SITE, EDGE, 7, [machine("b"), machine("a")])
    read = decode(encode(config), SITE, EDGE)
    assert read == config
    assert list(read.by_name) == ["a", "b"]
    assert len(read.by_name["a"].spec.signals) == 11
    assert encode(config).startswith(
        b'{"schema":1,"revision":7,"site":"hall","edge":"e1","machines":[{"kind":"Machine"'
    )


def test_what_an_edge_has_no_use_for_is_left_out() -> None:
    noisy = msgspec.structs.replace(
        machine(),
        metadata=msgspec.structs.replace(machine().metadata, annotations={"last-applied": "x" * 1000}),
        status={"conditions": []},
    )
    assert encode(make(SITE, EDGE, 1, [noisy])) == encode(make(SITE, EDGE, 1, [machine()]))
    assert b"profileRef" not in encode(make(SITE, EDGE, 1, [noisy]))


def test_the_hash_tells_what_is_configured_not_when() -> None:
    first = make(SITE, EDGE, 1, [machine("a"), machine("b")])
    assert make(SITE, EDGE, 9, [machine("b"), machine("a")]).sha256 == first.sha256
    assert make(SITE, EDGE, 1, [machine("a")]).sha256 != first.sha256
    faster = msgspec.structs.replace(machine("b"), spec=msgspec.structs.replace(machine().spec, poll_interval_ms=11))
    assert make(SITE, EDGE, 1, [machine("a"), faster]).sha256 != first.sha256


def test_no_machines_are_a_configuration_too() -> None:
    assert decode(encode(make(SITE, EDGE, 3, [])), SITE, EDGE).machines == []


WORDS = "a-z, 0-9 and '-', a letter or digit first and last, at most 63 characters"

BAD_MACHINES: list[tuple[str, Any, str, str]] = [
    ("spec.pollIntervalMs", 0, "", "0: expected a whole number; allowed are 10 to 3600000"),
    ("spec.pollIntervalMs", "fast", "", "'fast': expected a whole number, got text; allowed are 10 to 3600000"),
    ("spec.pollIntervalMs", 10**80, "", f"1{'0' * 59}…: expected a whole number; allowed are 10 to 3600000"),
    ("spec.connection.modbus.port", 99999, "", "99999: expected a whole number; allowed are 1 to 65535"),
    ("spec.connection.modbus.host", "", "", "'': expected text of length >= 1"),
    ("spec.connection", {"opcua": {}}, "", "unknown field `opcua`; known are modbus"),
    ("spec.connection", {}, "", "needs exactly one member, for example modbus"),
    ("spec.connection", None, "", "null: expected a mapping, got nothing"),
    ("spec.signals", 10**9, "", "1000000000: expected a list, got a whole number"),
    (
        "spec.signals",
        [{"name": f"s{n}", "register": 1} for n in range(1001)],
        "",
        "a list of 1001: expected a list of length <= 1000",
    ),
    ("spec.signals", [], "spec", "needs signals, or profileRef that names a MachineProfile"),
    ("spec.signals", [{"name": "a", "register": 70000}], "spec.signals[0].register", "70000: expected a whole number;"),
    ("spec.profileRef", {"name": "lathe"}, "spec.profileRef.name", "'lathe'; an edge has no profiles: who writes this"),
    ("spec.edge", "e2", "", "'e2'; this document is that of edge 'e1'"),
    ("spec.pollIntervallMs", 5, "spec", "unknown field `pollIntervallMs`; did you mean pollIntervalMs?"),
    ("metadata.name", "Bad Name", "", f"'Bad Name': expected {WORDS}"),
    ("metadata.name", None, "", "null: expected text, got nothing"),
    ("kind", "MachineProfile", "", "'MachineProfile': expected Machine"),
    ("apiVersion", "v2", "", "'v2': unknown word 'v2'; known are cncmon.dev/v1alpha1"),
]


@pytest.mark.parametrize(("place", "value", "told", "said"), BAD_MACHINES, ids=lambda value: str(value)[:40])
def test_a_bad_machine_is_named_with_field_value_and_what_is_allowed(
    place: str, value: Any, told: str, said: str
) -> None:
    bad = document(machine("bad-1"), machine("other"))
    node = bad["machines"][0]
    *way, last = place.split(".")
    for step in way:
        node = node[step]
    node[last] = value
    refused = refusal(bad)
    assert refused.revision == 7
    (problem,) = refused.problems
    name = {"Bad Name": "Bad Name", None: "number 1"}.get(value, "bad-1") if place == "metadata.name" else "bad-1"
    assert (problem.machine, problem.path) == (name, f"$.{told or place}")
    assert problem.problem.startswith(said)


def test_every_bad_machine_is_named_and_one_of_them_spoils_the_document() -> None:
    bad = document(machine("a"), machine("b"), machine("c"))
    bad["machines"][0]["spec"]["pollIntervalMs"] = 0
    bad["machines"][2]["spec"]["connection"]["modbus"]["port"] = 99999
    assert [problem.machine for problem in refusal(bad).problems] == ["a", "c"]
    assert "Machine a spec.pollIntervalMs: 0: expected a whole number" in str(refusal(bad))


def test_two_machines_of_one_name() -> None:
    twice = document(machine("a"))
    twice["machines"] *= 2
    (problem,) = refusal(twice).problems
    assert problem == edge_config.ConfigProblem(
        "a", "$.metadata.name", "another machine of this document has this name already"
    )


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"schema": 2}, "$.schema", "2; this version reads 1: update the agent"),
        ({"schema": 2, "machines": "of another kind"}, "$.schema", "2; this version reads 1: update the agent"),
        ({"schema": 0}, "$.schema", "0; this version reads 1"),
        ({"schema": "1"}, "$.schema", "'1': expected a whole number, got text"),
        ({"site": "other"}, "$.site", "'other'; this site is 'hall'"),
        ({"revision": 0}, "$.revision", "0; at least 1"),
        ({"revision": "x"}, "$.revision", "'x': expected a whole number, got text"),
        ({"machines": {}}, "$.machines", "a mapping: expected a list, got a mapping"),
        ({"machine": []}, "$", "unknown field `machine`; did you mean machines?"),
    ],
)
def test_a_bad_document_is_explained(changes: dict[str, Any], path: str, said: str) -> None:
    (first, *_) = refusal(document() | changes).problems
    assert (first.machine, first.path) == ("", path)
    assert first.problem.startswith(said)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not JSON: "),
        (b"\xff\xfe", "not JSON: "),
        (b'{"schema": 1', "not JSON: "),
        (b"[]", "expected a mapping, got a list"),
        (b"null", "expected a mapping, got nothing"),
        (b"{}", "missing field `schema`"),
        (b"[" * 500_000, "expected a mapping, got a list"),
        (b'{"a":' * 100_000, "not JSON: "),
        (b" " * (DOCUMENT_BYTES_MAX + 1), f"{DOCUMENT_BYTES_MAX + 1} bytes; at most {DOCUMENT_BYTES_MAX}"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_what_is_no_document_is_refused(data: bytes, said: str) -> None:
    (problem,) = refusal(data).problems
    assert problem.problem.startswith(said)


def test_too_many_machines_cost_no_time_and_no_flood_of_words() -> None:
    head, tail = encode(make(SITE, EDGE, 1, [])).split(b"[]")
    document = head + b"[" + b",".join([b"5"] * 500_000) + b"]" + tail
    with counting() as work:
        problems = refusal(document).problems
    assert work.steps < 2 * 500_000, "at most a step or two for each"
    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[0].problem == f"500000 machines; at most {MACHINES_MAX} an edge"


def test_a_plant_fits() -> None:
    config = make(SITE, EDGE, 1, [machine(f"m-{n}") for n in range(500)])
    assert decode(encode(config), SITE, EDGE) == config


@given(st.binary(max_size=200), st.integers(0, 1000), st.integers(1, 5))
def test_no_damage_raises_anything_else(noise: bytes, at: int, length: int) -> None:
    good = encode(make(SITE, EDGE, 7, [machine()]))
    for data in (noise, good[:at] + noise[:length] + good[at + length :]):
        with contextlib.suppress(EdgeConfigError):
            assert isinstance(decode(data, SITE, EDGE), EdgeConfig)
