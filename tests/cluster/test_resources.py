"""Our resources on a real API server: what is taken, what is refused and how that is said, what people see of it."""

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cncmon_core import machine_files
from cncmon_core.machine import SIGNALS_MAX
from testkit.kubernetes import Cluster

pytestmark = pytest.mark.needs("kubernetes")

MANIFESTS = Path(__file__).parent / "manifests"
GOOD, BAD = (sorted((MANIFESTS / kind).glob("*.yaml")) for kind in ("good", "bad"))


def machine(name: str = "m", **spec: Any) -> dict[str, Any]:
    least = {"connection": {"modbus": {"host": "a"}}, "signals": [{"name": "temperature", "register": 1}]}
    metadata = {"name": name}
    return {"apiVersion": "cncmon.dev/v1alpha1", "kind": "Machine", "metadata": metadata, "spec": least | spec}


def apply(cluster: Cluster, namespace: str, *documents: dict[str, Any], manager: str = "tests") -> str:
    """Apply documents and return what is wrong with them, empty where nothing is."""
    text = yaml.safe_dump_all(documents)
    done = cluster.kubectl(
        "apply", "-n", namespace, "--server-side", f"--field-manager={manager}", "-f", "-", stdin=text, check=False
    )
    return done.stderr if done.returncode else ""


def refused_by_files(tmp_path: Path, *documents: dict[str, Any]) -> set[str]:
    """Return the names of the documents that `cncmon apply -f` refuses, each looked at alone."""
    refused = set()
    for number, document in enumerate(documents):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(document))
        if machine_files.load([file]).problems:
            refused.add(document["metadata"]["name"])
    return refused


def test_there_are_forty_of_them_and_more() -> None:
    assert (len(GOOD), len(BAD)) >= (12, 40)


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_a_good_one_is_taken(resources: Cluster, namespace: str, file: Path) -> None:
    resources.kubectl("apply", "-n", namespace, "-f", str(file))
    profile = MANIFESTS / "good" / "profile-least.yaml"
    assert machine_files.load({file, profile}).problems == []


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_bad_one_is_refused_and_why_is_said(resources: Cluster, namespace: str, file: Path) -> None:
    expected = [line.removeprefix("#: ") for line in file.read_text().splitlines() if line.startswith("#: ")]
    done = resources.kubectl("create", "-n", namespace, "-f", str(file), check=False)
    assert done.returncode
    assert expected
    assert [line for line in expected if line not in done.stderr] == []
    assert machine_files.load([file]).problems, "one schema for files and clusters"


def test_as_many_signals_as_may_be_and_no_more(resources: Cluster, namespace: str, tmp_path: Path) -> None:
    def with_signals(name: str, number: int) -> dict[str, Any]:
        words = {str(raw): f"word {raw}" for raw in range(50)}
        return machine(name, signals=[{"name": f"s{at}", "register": at, "enumeration": words} for at in range(number)])

    most, more = with_signals("most", SIGNALS_MAX), with_signals("more", SIGNALS_MAX + 1)
    assert apply(resources, namespace, most) == ""
    assert "must have at most 1000 items" in apply(resources, namespace, more)
    assert refused_by_files(tmp_path, most, more) == {"more"}


def test_files_and_clusters_take_the_same(resources: Cluster, namespace: str, tmp_path: Path) -> None:
    """Seeded documents with values on and beyond every bound: each is taken by both, or by neither."""
    seed = random.randrange(1 << 30)
    dice = random.Random(seed)
    documents = [_thrown(dice, f"r-{number}") for number in range(400)]
    done = resources.kubectl(
        "create", "-n", namespace, "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(documents), check=False
    )
    taken = {line.split()[0].split("/")[1] for line in done.stdout.splitlines()}
    refused = refused_by_files(tmp_path, *documents)
    assert 50 < len(taken) < 350, f"seed {seed}: the dice should give some of both"
    assert taken ^ {document["metadata"]["name"] for document in documents} == refused, f"seed {seed}"


def _thrown(dice: random.Random, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {}

    def maybe(into: dict[str, Any], field: str, *values: Any, chance: float = 0.15) -> None:
        if dice.random() < chance:
            into[field] = dice.choice(values)

    modbus: dict[str, Any] = {"host": "a"}
    maybe(modbus, "port", 0, 1, 65535, 65536)
    maybe(modbus, "unitId", -1, 0, 255, 256)
    maybe(modbus, "registersMax", 0, 1, 2, 4, 125, 126)
    maybe(modbus, "gapMax", -1, 0, 125, 126)
    spec["connection"] = {"modbus": modbus}
    maybe(spec, "site", "hall", "-hall", "Hall", "x" * 63, "x" * 64)
    maybe(spec, "pollIntervalMs", 9, 10, 3_600_000, 3_600_001)
    maybe(spec, "idealCycleTimeS", 0, 0.001, -1, 5)
    maybe(spec, "displayName", "x" * 128, "x" * 129)
    spec["signals"] = [_thrown_signal(dice, maybe) for _ in range(dice.choice((0, 1, 1, 1, 2, 3)))]
    return machine(name) | {"spec": spec}


def _thrown_signal(dice: random.Random, maybe: Any) -> dict[str, Any]:
    names = ("temperature", "machine_state", "part_count", "door", "coolant", "tool", "timestamp")
    signal: dict[str, Any] = {"name": dice.choice(names[:6] if dice.random() < 0.95 else names)}
    signal["register"] = dice.choice((0, 1, 2, 65532, 65534, 65535))
    maybe(signal, "type", "int16", "uint32", "float32", "float64", "uint64", "bool", "string", "bcd", chance=0.4)
    maybe(signal, "table", "holding", "coil", "ram")
    maybe(signal, "length", 0, 1, 4, 64, 65)
    maybe(signal, "bit", -1, 0, 15, 16)
    maybe(signal, "wordOrder", "little", "middle", chance=0.05)
    chance = 0.9 if signal["name"] == "machine_state" else 0.15
    words: list[dict[str, str]] = [{"0": "idle"}, {"-1": "alarm", "2": "running"}, {"1": "working"}, {}]
    words += [{"one": "idle"}, {"1" * 21: "idle"}]
    maybe(signal, "enumeration", *words, chance=chance)
    return signal


def test_what_is_left_out_is_filled_in(resources: Cluster, namespace: str) -> None:
    assert apply(resources, namespace, machine()) == ""
    spec = resources.get("machine", "m", "-n", namespace)["spec"]
    assert (spec["site"], spec["edge"], spec["pollIntervalMs"]) == ("default", "edge", 1000)
    assert spec["connection"]["modbus"] == {
        "host": "a", "port": 502, "unitId": 1, "timeoutMs": 1000, "registersMax": 125, "gapMax": 16
    }  # fmt: skip
    (signal,) = spec["signals"]
    defaults = {"table": "holding", "type": "uint16", "wordOrder": "big", "length": 8, "scale": 1, "offset": 0}
    assert signal == {"name": "temperature", "register": 1} | defaults


def test_the_site_stays_and_the_edge_may_change(resources: Cluster, namespace: str) -> None:
    assert apply(resources, namespace, machine(site="hall", edge="e1")) == ""
    assert apply(resources, namespace, machine(site="hall", edge="e2")) == ""
    said = apply(resources, namespace, machine(site="yard", edge="e2"))
    assert 'spec.site: Invalid value: "string": site can\'t be changed: delete the resource and make it again' in said


@pytest.mark.parametrize("field", ["site", "edge"])
def test_an_edge_node_stays_the_edge_that_it_is(resources: Cluster, namespace: str, field: str) -> None:
    node = {"apiVersion": "cncmon.dev/v1alpha1", "kind": "EdgeNode", "metadata": {"name": "node"}}
    spec = {"site": "hall", "edge": "e1"}
    assert apply(resources, namespace, node | {"spec": spec}) == ""
    assert apply(resources, namespace, node | {"spec": spec | {"displayName": "by the door"}}) == ""
    assert f"{field} can't be changed" in apply(resources, namespace, node | {"spec": spec | {field: "other"}})


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    moment = "2026-03-01T06:00:00Z"
    return {"type": kind, "status": status, "reason": "Tested", "message": "so it is", "lastTransitionTime": moment}


def set_status(cluster: Cluster, namespace: str, name: str, status: dict[str, Any]) -> str:
    patch = yaml.safe_dump({"status": status})
    done = cluster.kubectl(
        "patch", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch, check=False
    )
    return done.stderr if done.returncode else ""


def columns(cluster: Cluster, namespace: str, *what: str) -> tuple[str, list[str]]:
    head, *rows = cluster.kubectl("get", *what, "-n", namespace).stdout.splitlines()
    assert len(rows) == 1
    return " ".join(head.split()), rows[0].split()


def test_get_shows_what_one_wants_to_know(resources: Cluster, namespace: str) -> None:
    for name in ("machine-all", "profile-rollout", "edge-all"):
        resources.kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / "good" / f"{name}.yaml"))
    moment = "2026-03-01T06:00:00Z"
    seen = {"state": "running", "protocol": "modbus", "lastValueTime": moment, "conditions": [condition("Ready")]}
    assert set_status(resources, namespace, "mc/mill-2", seen) == ""
    head, row = columns(resources, namespace, "mc")
    assert head == "NAME STATE EDGE PROTOCOL READY LAST-SEEN AGE"
    assert row[:5] == ["mill-2", "running", "e1", "modbus", "True"]
    assert row[5].endswith("d")
    head, row = columns(resources, namespace, "mc", "-o", "wide")
    assert head.endswith("AGE SITE PROFILE POLL-MS")
    assert row[-3:] == ["hall", "mill", "100"]

    rolled = {"machines": 7, "rollout": {"phase": "Progressing", "edgesDone": 1, "edgesTotal": 3}}
    assert set_status(resources, namespace, "mcp/lathe", rolled) == ""
    head, row = columns(resources, namespace, "mcp")
    assert head == "NAME VERSION MACHINES ROLLOUT AGE"
    assert row[:4] == ["lathe", "1.2", "7", "Progressing"]

    beat = {"lastSeen": moment, "machines": 9, "machinesConnected": 8, "bufferHoursLeft": 31.5, "version": "0.1.0"}
    assert set_status(resources, namespace, "edge/hall-e2", beat | {"conditions": [condition("Ready", "False")]}) == ""
    head, row = columns(resources, namespace, "edge")
    assert head == "NAME SITE EDGE READY MACHINES CONNECTED BUFFER-HOURS LAST-SEEN AGE"
    assert row[:7] == ["hall-e2", "hall", "e2", "False", "9", "8", "31.5"]

    all_of_it = resources.kubectl("get", "cncmon", "-n", namespace, "-o", "name").stdout.split()
    assert len(all_of_it) == 3


def test_status_is_the_operators_and_spec_is_the_users(resources: Cluster, namespace: str) -> None:
    assert apply(resources, namespace, machine() | {"status": {"state": "running"}}) == ""
    made = resources.get("mc", "m", "-n", namespace)
    assert "status" not in made
    assert set_status(resources, namespace, "mc/m", {"observedGeneration": 1, "conditions": [condition("Ready")]}) == ""
    told = resources.get("mc", "m", "-n", namespace)
    assert told["metadata"]["generation"] == made["metadata"]["generation"] == 1
    assert apply(resources, namespace, machine(pollIntervalMs=500)) == ""
    changed = resources.get("mc", "m", "-n", namespace)
    assert changed["metadata"]["generation"] == 2
    assert changed["status"] == told["status"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"conditions": [condition("Ready", "Maybe")]}, 'supported values: "True", "False", "Unknown"'),
        ({"conditions": [condition("Ready"), condition("Ready")]}, "Duplicate value"),
        ({"conditions": [{"type": "Ready", "status": "True"}]}, "Required value"),
        ({"observedGeneration": -1}, "greater than or equal to 0"),
        ({"errors": [{"path": "$", "problem": "x" * 1025}]}, "may not be more than 1024 bytes"),
    ],
    ids=["unknown word", "twice", "no reason", "negative", "too long"],
)
def test_a_status_that_nobody_could_read_is_refused(
    resources: Cluster, namespace: str, status: dict[str, Any], said: str
) -> None:
    assert apply(resources, namespace, machine()) == ""
    found = set_status(resources, namespace, "mc/m", status)
    assert said in found or (said.startswith("supported") and "Unsupported value" in found)


def test_two_may_each_look_after_signals_of_one_machine(resources: Cluster, namespace: str) -> None:
    assert apply(resources, namespace, machine(), manager="one") == ""
    more = {"signals": [{"name": "door", "register": 9}]}
    text = yaml.safe_dump(machine() | {"spec": more})
    resources.kubectl("apply", "-n", namespace, "--server-side", "--field-manager=two", "-f", "-", stdin=text)
    signals = resources.get("mc", "m", "-n", namespace)["spec"]["signals"]
    assert [signal["name"] for signal in signals] == ["temperature", "door"]


def test_explain_teaches(resources: Cluster) -> None:
    """Every field that the server publishes has a description, and `kubectl explain` shows it."""
    published = resources.kubectl("get", "--raw", "/openapi/v3/apis/cncmon.dev/v1alpha1").stdout
    schemas = yaml.safe_load(published)["components"]["schemas"]
    silent: list[str] = []
    fields = 0

    def walk(path: str, schema: dict[str, Any]) -> None:
        nonlocal fields
        for name, field in schema.get("properties", {}).items():
            if path.count(".") == 0 and name in ("apiVersion", "kind", "metadata"):
                continue
            fields += 1
            silent.extend([f"{path}.{name}"] if not field.get("description") else [])
            walk(f"{path}.{name}", field.get("items", field))

    for kind in ("Machine", "MachineProfile", "EdgeNode"):
        walk(kind, schemas[f"dev.cncmon.v1alpha1.{kind}"])
    assert silent == []
    assert fields > 90
    said = resources.kubectl("explain", "mc.spec.connection.modbus.registersMax").stdout
    assert "Most registers the device answers at once (the protocol allows 125)." in said
    assert "FIELD: registersMax <integer>" in said


def test_what_was_made_by_kubectl_can_be_read_as_a_file(resources: Cluster, namespace: str, tmp_path: Path) -> None:
    """`kubectl get -o yaml`, with all that the server adds, is a document for `cncmon apply -f`."""
    resources.kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / "good" / "machine-least.yaml"))
    assert set_status(resources, namespace, "mc/mill-1", {"conditions": [condition("Ready")]}) == ""
    file = tmp_path / "mill-1.yaml"
    file.write_text(resources.kubectl("get", "mc", "mill-1", "-n", namespace, "-o", "yaml").stdout)
    found = machine_files.load([file])
    assert found.problems == []
    assert found.machines["mill-1"].spec.poll_interval_ms == 1000


def test_definitions_may_be_applied_again_over_what_is_there(resources: Cluster, namespace: str) -> None:
    files = Path(__file__).parents[2] / "charts/cnc-monitor/files"
    assert apply(resources, namespace, machine()) == ""
    done: subprocess.CompletedProcess[str] = resources.kubectl(
        "apply", "--server-side", "-f", str(files / "crds"), "-f", str(files / "admission")
    )
    assert done.stdout.count("serverside-applied") == 5
    assert resources.get("mc", "m", "-n", namespace)["spec"]["edge"] == "edge"
