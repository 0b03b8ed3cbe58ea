"""Machine documents. Each file of bad_machines/ begins with `#: ` lines: what must be said of it, word for word."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_core.machine_files import Machines, load

HERE = Path(__file__).parent
GOOD = HERE / "good_machines" / "00-good.yaml"
BAD = sorted((HERE / "bad_machines").iterdir())


def expected(path: Path) -> list[str]:
    lines = [line.decode() for line in path.read_bytes().split(b"\n") if line.startswith(b"#: ")]
    return [line.removeprefix("#: ") for line in lines]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_document_is_explained_and_the_good_one_beside_it_is_used(path: Path, tmp_path: Path) -> None:
    for file in (GOOD, path):
        shutil.copy(file, tmp_path)
    found = load([tmp_path])  # bombs included: one that is not bounded takes for ever
    assert expected(path)
    assert [str(problem).replace(f"{tmp_path}/", "") for problem in found.problems] == expected(path)
    assert found.machines.keys() - {"good-2"} == {"good-1"}
    assert len(found.machines["good-1"].spec.signals) == 11


def test_every_message_names_a_line_unless_the_file_can_not_be_read() -> None:
    for path in BAD:
        for message in expected(path):
            place = message.removeprefix(f"{path.name}:")
            assert place.split(":")[0].isdigit() or path.stem in ("binary", "control-characters")


def test_a_good_document() -> None:
    found = load([GOOD])
    assert found.problems == []
    assert found.machines.keys() == {"good-1"}
    assert found.profiles.keys() == {"lathe"}
    machine = found.machines["good-1"]
    connection = machine.spec.connection.modbus
    assert (machine.spec.site, machine.spec.edge, machine.spec.poll_interval_ms) == ("hall", "e1", 10)
    assert (connection.host, connection.port, connection.unit_id) == ("gateway.local", 1502, 0)
    assert (connection.timeout_ms, connection.registers_max, connection.gap_max) == (250, 32, 0)
    signals = {signal.name: signal for signal in machine.spec.signals}
    assert list(signals)[:2] == ["temperature", "spindle_speed"]
    assert (signals["temperature"].register, signals["temperature"].type) == (100, "float32")
    assert signals["machine_state"].enumeration == {"0": "idle", "1": "running", "2": "hold", "-1": "alarm"}


def minimal(name: str = "m", **signal: object) -> str:
    fields = {"name": "temperature", "register": 1} | signal
    return (
        "apiVersion: cncmon.dev/v1alpha1\nkind: Machine\nmetadata: {name: " + name + "}\n"
        "spec:\n  connection: {modbus: {host: h}}\n  signals:\n  - "
        + "{"
        + ", ".join(f"{key}: {value}" for key, value in fields.items())
        + "}\n"
    )


def load_text(folder: Path, text: str | bytes) -> Machines:
    file = folder / "machines.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load([file])


def test_edges_and_references_of_a_cluster_may_stand_in_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text("""
apiVersion: cncmon.dev/v1alpha1
kind: EdgeNode
metadata: {name: hall-e1}
spec: {site: hall, edge: e1, join: {natsUrl: "nats://n:4222", credentialsSecretRef: {name: e1}}}
---
apiVersion: cncmon.dev/v1alpha1
kind: MachineProfile
metadata: {name: mill}
spec:
  version: "1.2"
  rollout: {edgesAtOnce: 2}
  signals: [{name: temperature, register: 1}]
---
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: m1}
spec:
  connection: {modbus: {host: a}}
  profileRef: {name: mill}
  shiftCalendarRef: {name: two-shifts}
""")
    found = load([tmp_path])
    assert found.problems == []
    edge, rollout = found.edges["hall-e1"].spec, found.profiles["mill"].spec.rollout
    assert edge.join is not None
    assert (edge.site, edge.edge, edge.join.nats_url) == ("hall", "e1", "nats://n:4222")
    assert rollout is not None
    assert (rollout.edges_at_once, rollout.soak_seconds, rollout.on_failure) == (2, 30, "RollBack")
    calendar = found.machines["m1"].spec.shift_calendar_ref
    assert calendar is not None
    assert calendar.name == "two-shifts"


def test_defaults(tmp_path: Path) -> None:
    machine = load_text(tmp_path, minimal()).machines["m"]
    connection = machine.spec.connection.modbus
    assert (machine.spec.site, machine.spec.edge, machine.spec.poll_interval_ms) == ("default", "edge", 1000)
    assert (connection.port, connection.unit_id, connection.timeout_ms) == (502, 1, 1000)
    assert machine.spec.signals[0].type == "uint16"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "---\n---\n# nothing\n"])
def test_a_file_of_nothing_holds_no_machine(tmp_path: Path, text: str) -> None:
    found = load_text(tmp_path, text)
    assert (found.machines, found.profiles) == ({}, {})


def test_files_and_folders_in_name_order(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.txt", "d.yaml.bak"):
        (tmp_path / name).write_text(minimal(name[0]))
    assert list(load([tmp_path]).machines) == ["a", "b"]
    assert list(load([tmp_path / "c.txt", tmp_path / "b.yaml"]).machines) == ["c", "b"]


def test_the_first_of_two_documents_of_a_name_is_used(tmp_path: Path) -> None:
    found = load_text(tmp_path, minimal() + "---\n" + minimal(register=2))
    assert found.machines["m"].spec.signals[0].register == 1
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in found.problems] == [
        "machines.yaml:11: Machine m metadata.name: another document of this kind has this name already"
    ]


def test_a_profile_may_stand_in_a_later_file(tmp_path: Path) -> None:
    profile = (
        "apiVersion: cncmon.dev/v1alpha1\nkind: MachineProfile\nmetadata: {name: p}\n"
        "spec: {signals: [{name: a, register: 1}]}\n"
    )
    machine = minimal().split("  signals")[0] + "  profileRef: {name: p}\n"
    (tmp_path / "1.yaml").write_text(machine)
    (tmp_path / "2.yaml").write_text(profile)
    found = load([tmp_path])
    assert found.problems == []
    assert [signal.name for signal in found.machines["m"].spec.signals] == ["a"]


@pytest.mark.parametrize("count", [1000, 1001, 100_000])
def test_many_signals(tmp_path: Path, count: int) -> None:
    lines = [f"  - {{name: s{number}, register: {number % 65536}}}" for number in range(count)]
    text = minimal().rsplit("\n", 2)[0] + "\n" + "\n".join(lines) + "\n"
    found = load_text(tmp_path, text)
    if count == 1000:
        assert len(found.machines["m"].spec.signals) == count
        return
    assert not found.machines
    said = "expected a list of length <= 1000" if count == 1001 else "more than 100000 values"
    assert said in str(found.problems[0])


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "- " * 200_000, "{a: " * 200_000, "".join(f"{' ' * depth}a:\n" for depth in range(2000))],
    ids=["flow", "block", "mapping", "lines"],
)
def test_nesting_does_not_end_the_process(tmp_path: Path, text: str) -> None:
    (problem,) = load_text(tmp_path, text).problems
    assert "nested more than 64 deep" in str(problem)


def test_paths_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "big.yaml").write_bytes(b"#" * ((16 << 20) + 1))
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder.yaml").mkdir()
    cases = {
        tmp_path / "missing.yaml": "No such file",
        tmp_path / "empty": "holds no .yaml file",
        tmp_path / "big.yaml": "no regular file of at most 16 MiB",
        tmp_path / "loop.yaml": "symbolic links",
        Path("/dev/zero"): "no regular file",
        tmp_path / ("x" * 300): "File name too long",
    }
    for path, said in cases.items():
        (problem,) = load([path]).problems
        assert str(path) in str(problem)
        assert said in str(problem)
    (tmp_path / "good.yaml").write_text(minimal())
    found = load([tmp_path, *cases])
    assert found.machines.keys() == {"m"}
    assert len(found.problems) == 3 + len(cases)


@settings(max_examples=200)
@given(st.binary(max_size=200) | st.text("[]{}&*a:-?|>'\"!%@#, \n\t0.", max_size=60).map(str.encode))
def test_nothing_raises(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    assert load([file]).machines == {}


FRAGMENTS = st.sampled_from(
    [
        "Machine",
        "name",
        "{}",
        "[]",
        "null",
        "1",
        "-1",
        ".nan",
        "spec",
        "signals",
        "*a",
        "&a",
        "!!set",
        "? ",
        "<<",
        "x: 1",
        "\t",
    ]
)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_document_raises_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = GOOD.read_text()
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(FRAGMENTS) + text[at + data.draw(st.integers(0, 10)) :]
    file = tmp_path_factory.getbasetemp() / "damaged.yaml"
    file.write_text(text)
    for problem in load([file]).problems:
        assert str(problem).startswith(str(file))
