"""The Helm charts without a cluster: what they refuse, what they become. On an API server: test_charts_installed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate  # type: ignore[import-untyped]  # it ships no annotations
import pytest
import yaml

from cncmon_standalone.embedded import nats
from testkit.charts import COMBINATIONS, EDGE, EDGE_LEAST, MONITOR, environment, find, manifests, pod_specs, rendered
from testkit.kubernetes import ROOT

KUBERNETES = ("1.31", "1.32", "1.33", "1.34")

OTHERS = {
    "Cluster.postgresql.cnpg.io", "ScaledObject.keda.sh", "HTTPRoute.gateway.networking.k8s.io",
    "PodMonitor.monitoring.coreos.com", "ServiceMonitor.monitoring.coreos.com",
}  # fmt: skip
"""Kinds that Kubernetes itself has not."""


EACH = [pytest.param(chart, values, id=name) for name, (chart, values) in COMBINATIONS.items()]


def test_schemas_and_tables_are_made_from_the_comments() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/charts.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("chart", "values"), EACH)
def test_lint_finds_nothing(chart: Path, values: dict[str, Any]) -> None:
    report = helm_python.lint(chart, values, strict=True)
    assert not report["errors"]
    assert [said for said in report["messages"] if said["severity"] > 1] == []


BAD: list[tuple[str, Path, dict[str, Any], str]] = [
    ("misspelt", MONITOR, {"ingest": {"replica": 2}}, r"/ingest'.*'replica' not allowed"),
    ("misspelt-top", MONITOR, {"queryapi": {}}, r"'queryapi' not allowed"),
    ("replicas-text", MONITOR, {"ingest": {"replicas": "two"}}, r"/ingest/replicas'.*want integer"),
    ("replicas-negative", MONITOR, {"queryApi": {"replicas": -1}}, r"/queryApi/replicas'.*want 0"),
    ("nats-two", MONITOR, {"nats": {"bundled": {"replicas": 2}}}, r"/nats/bundled/replicas'.*one of 1, 3"),
    ("nats-mode", MONITOR, {"nats": {"mode": "builtin"}}, r"/nats/mode'.*'bundled', 'external'"),
    ("database-mode", MONITOR, {"database": {"mode": "mysql"}}, r"/database/mode'.*'bundled', 'external', 'cnpg'"),
    (
        "quantity",
        MONITOR,
        {"database": {"bundled": {"storage": {"size": "20 GB"}}}},
        r"/database/bundled/storage/size'",
    ),
    ("port", MONITOR, {"queryApi": {"service": {"port": 70000}}}, r"/queryApi/service/port'.*want 65,535"),
    ("digest", MONITOR, {"ingest": {"image": {"digest": "abc"}}}, r"/ingest/image/digest'.*pattern"),
    ("setting-unknown", MONITOR, {"ingest": {"settings": {"fetch": 1}}}, r"/ingest/settings'.*'fetch' not allowed"),
    ("setting-bound", MONITOR, {"ingest": {"settings": {"fetch_messages": 0}}}, r"/ingest/settings/fetch_messages'"),
    ("setting-type", MONITOR, {"queryApi": {"settings": {"tick_ms": "fast"}}}, r"/queryApi/settings/tick_ms'"),
    ("setting-taken", MONITOR, {"queryApi": {"settings": {"port": 1}}}, r"/queryApi/settings'.*'port' not allowed"),
    ("env", MONITOR, {"operator": {"extraEnv": [{"name": "A B"}]}}, r"/operator/extraEnv/0/name'"),
    ("resources", MONITOR, {"ingest": {"resources": {"limit": {}}}}, r"/ingest/resources'.*'limit' not allowed"),
    ("percent", MONITOR, {"queryApi": {"minAvailable": "200%"}}, r"/queryApi/minAvailable'"),
    ("log-level", MONITOR, {"logLevel": "verbose"}, r"/logLevel'.*'debug'"),
    ("grace", MONITOR, {"ingest": {"terminationGracePeriodSeconds": 1}}, r"/ingest/terminationGracePeriodSeconds'"),
    ("uninstall", MONITOR, {"nats": {"bundled": {"storage": {"onUninstall": "keep"}}}}, r"storage/onUninstall'"),
    ("nats-url", MONITOR, {"nats": {"external": {"servers": ["http://a"]}}}, r"/nats/external/servers/0'.*pattern"),
    ("min-max", MONITOR, {"ingest": {"autoscaling": {"minReplicas": 9}}}, r"ingest.autoscaling.minReplicas is 9"),
    ("no-database", MONITOR, {"database": {"mode": "external"}}, r"database.external.existingSecret is needed"),
    ("no-nats", MONITOR, {"nats": {"mode": "external"}}, r"nats.external.servers is needed"),
    ("no-host", MONITOR, {"queryApi": {"ingress": {"enabled": True}}}, r"queryApi.ingress.host is needed"),
    ("no-gateway", MONITOR, {"queryApi": {"httpRoute": {"enabled": True}}}, r"httpRoute.parentRefs is needed"),
    ("no-ca", MONITOR, {"nats": {"bundled": {"tlsSecret": "x"}}}, r"nats.tlsSecret is needed"),
    ("edge-nothing", EDGE, {}, r"(site|nats.servers) is needed"),
    ("edge-no-edge", EDGE, {**EDGE_LEAST, "edge": ""}, r"edge is needed"),
    ("edge-no-nats", EDGE, {**EDGE_LEAST, "nats": {}}, r"nats.servers is needed"),
    ("edge-name", EDGE, {**EDGE_LEAST, "site": "Halle 1"}, r"/site'.*pattern"),
    (
        "edge-device",
        EDGE,
        {**EDGE_LEAST, "devices": {"resources": {"serial": 1}}},
        r"/devices/resources'.*'serial' not allowed",
    ),
    ("edge-spool", EDGE, {**EDGE_LEAST, "settings": {"spool": "maybe"}}, r"/settings/spool'.*'required'"),
    ("edge-cidr", EDGE, {**EDGE_LEAST, "networkPolicy": {"machineCidrs": ["hall"]}}, r"/machineCidrs/0'"),
]


@pytest.mark.parametrize(("chart", "values", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_wrong_value_is_named(chart: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError) as refused:
        rendered(chart, values)
    assert re.search(said, str(refused.value), re.DOTALL), str(refused.value)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize(("chart", "values"), EACH)
def test_each_object_is_valid_kubernetes(chart: Path, values: dict[str, Any], version: str) -> None:
    others = set()
    for one in [*manifests(chart, values), *manifests(chart, values, upgrade=True)]:
        kind = f"{one['kind']}.{one['apiVersion'].partition('/')[0]}"
        if kind in OTHERS:
            others.add(kind)
            continue
        kubernetes_validate.validate(one, version, strict=True)
    assert others <= OTHERS


@pytest.mark.parametrize(("chart", "values"), EACH)
def test_every_pod_is_restricted_and_looked_after(chart: Path, values: dict[str, Any]) -> None:
    objects = manifests(chart, values)
    specs = pod_specs(objects)
    assert specs
    for name, spec in specs.items():
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["enableServiceLinks"] is False, name
        assert spec["automountServiceAccountToken"] is name.endswith(("-operator", "-release")), name
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"], name
            assert container["resources"]["limits"]["memory"], name
            assert not container["image"].endswith(":latest"), name
            if not name.startswith(("Job/", "Pod/")) and container in spec["containers"]:
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    assert container[probe], name
    labels = [one["metadata"]["labels"] for one in objects]
    assert all(one["app.kubernetes.io/managed-by"] == "Helm" for one in labels)


def paths(values: dict[str, Any], of: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        if isinstance(value, dict) and value and name not in ("resources", "requests"):
            yield from paths(value, (*of, name))
        else:
            yield (*of, name)


@pytest.mark.parametrize("chart", [MONITOR, EDGE], ids=["cnc-monitor", "cnc-edge"])
def test_every_value_is_used(chart: Path) -> None:
    templates = "\n".join(path.read_text() for path in (chart / "templates").rglob("*") if path.is_file())
    values = yaml.safe_load((chart / "values.yaml").read_text())
    unused = [".".join(path) for path in paths(values) if not re.search(rf'[."]{path[-1]}\b', templates)]
    assert unused == []


def test_streams_are_on_every_server() -> None:
    for values, replicas in (
        ({"nats": {"bundled": {"replicas": 3}}}, "3"),
        ({}, "1"),
        ({"nats": {"mode": "external", "external": {"servers": ["nats://a:4222"], "streamReplicas": 5}}}, "5"),
    ):
        for name, spec in pod_specs(manifests(MONITOR, values)).items():
            if name.endswith(("-ingest", "-migrate-1")):
                assert environment(spec)["CNCMON_INGEST_STREAM_REPLICAS"] == replicas, name


@pytest.mark.parametrize(("chart", "values"), EACH)
def test_what_a_policy_lets_reach_another_is_let_in_there(chart: Path, values: dict[str, Any]) -> None:
    objects = manifests(chart, values)
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    pods = [
        one["spec"]["template"]["metadata"]["labels"] if "template" in one["spec"] else one["metadata"]["labels"]
        for one in objects
        if one["kind"] in ("Deployment", "StatefulSet", "Job", "Pod")
    ]

    def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        wanted = selector.get("matchLabels", {}).items() <= labels.items()
        return wanted and all(
            labels.get(one["key"], "") in one["values"] for one in selector.get("matchExpressions", [])
        )

    def ports(rule: dict[str, Any]) -> set[str]:
        known = {4222: "client", 5432: "postgresql"}
        return {known.get(entry["port"], entry["port"]) for entry in rule["ports"]}

    assert bool(policies) is values.get("networkPolicy", {}).get("enabled", True)
    for labels in pods if policies else []:
        assert any(selects(policy["podSelector"], labels) for policy in policies), labels
    for policy in policies:
        senders = [labels for labels in pods if selects(policy["podSelector"], labels)]
        for rule in policy.get("egress", []):
            for peer in rule.get("to", []):
                if "podSelector" not in peer or "cnpg.io/cluster" in peer["podSelector"]["matchLabels"]:
                    continue
                receivers = [labels for labels in pods if selects(peer["podSelector"], labels)]
                assert receivers, peer
                for labels in receivers:
                    gates = [
                        entry
                        for one in policies
                        if selects(one["podSelector"], labels)
                        for entry in one.get("ingress", [])
                    ]
                    gates = [entry for entry in gates if ports(entry) & ports(rule)]
                    for sender in senders:
                        assert any(
                            "from" not in entry
                            or any(selects(source.get("podSelector", {}), sender) for source in entry["from"])
                            for entry in gates
                        ), f"{sender} may send to {labels}, which may not receive it"


def test_an_upgrade_migrates_before_anything_else_and_an_install_waits_for_nothing() -> None:
    job = find(manifests(MONITOR, {}), "Job", "-migrate-1")
    assert "annotations" not in job["metadata"]
    job = find(manifests(MONITOR, {}, upgrade=True), "Job", "-migrate-2")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"


def test_definitions_are_those_of_the_files_and_stay() -> None:
    objects = {(one["kind"], one["metadata"]["name"]): one for one in manifests(MONITOR, {})}
    files = [*(MONITOR / "files/crds").glob("*.yaml"), *(MONITOR / "files/admission").glob("*.yaml")]
    documents = [one for path in files for one in yaml.safe_load_all(path.read_text()) if one]
    assert len(documents) >= 5
    for document in documents:
        found = objects[document["kind"], document["metadata"]["name"]]
        assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert {**found, "metadata": None} == {**document, "metadata": None}
    without = manifests(MONITOR, {"crds": {"install": False}})
    assert not [one for one in without if one["kind"] == "CustomResourceDefinition" or "Admission" in one["kind"]]


@pytest.mark.parametrize("replicas", [1, 3])
def test_nats_server_takes_its_configuration(replicas: int, tmp_path: Path) -> None:
    objects = manifests(MONITOR, {"nats": {"bundled": {"replicas": replicas}}})
    file = tmp_path / "nats.conf"
    file.write_text(find(objects, "ConfigMap", "-nats")["data"]["nats.conf"])
    variables = environment(find(objects, "StatefulSet", "-nats")["spec"]["template"]["spec"])
    plain = {"POD_NAME": "plant-cnc-monitor-nats-0", "USER_PLAIN": "1", "PASSWORD_PLAIN": "5e5"}
    for name, value in plain.items():
        variables = {key: text.replace(f"$({name})", value) for key, text in variables.items()}
    done = subprocess.run([nats.program(), "-t", "-c", file], env=variables, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_the_api_may_be_called_by_the_names_that_lead_to_it() -> None:
    api = {
        "ingress": {"enabled": True, "host": "wall.example"},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["*.hall.example", "wall.example"]},
        "settings": {"hosts": ["cnc.plant.example"], "tick_ms": 900},
    }
    for values, hosts in (({"queryApi": api}, "wall.example,*.hall.example,cnc.plant.example"), ({}, "")):
        objects = manifests(MONITOR, values)
        variables = environment(find(objects, "Deployment", "-api")["spec"]["template"]["spec"])
        assert variables["CNCMON_API_HOSTS"] == hosts
        assert variables.get("CNCMON_API_TICK_MS") == ("900" if values else None)


def test_notes_say_the_next_command() -> None:
    for chart, values, command in (
        (MONITOR, {}, "kubectl -n cnc port-forward service/plant-cnc-monitor-api 8080:8080"),
        (MONITOR, COMBINATIONS["ingress"][1], "https://wall.example/"),
        (EDGE, EDGE_LEAST, "kubectl -n cnc rollout status statefulset/plant-cnc-edge"),
    ):
        notes = [text for path, text in rendered(chart, values).items() if path.endswith("NOTES.txt")]
        assert len(notes) == 1
        assert command in notes[0]


def test_readmes_are_about_their_charts() -> None:
    for chart in (MONITOR, EDGE):
        text = (chart / "README.md").read_text()
        assert "helm install" in text
        assert "helm uninstall" in text
        assert "helm rollback" in text
