"""skaffold.yaml: what it names is there, and what it would render is taken by an API server, in its order.

Its schema is checked by skaffold itself, and by hand where the schema's version here changes.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from testkit.charts import manifests
from testkit.kubernetes import ROOT, Cluster, running_cluster

PROFILES = ("minimal", "full")


def configs(profile: str) -> list[dict[str, Any]]:
    """Return the configurations of skaffold.yaml with a profile's patches (replace is all that they use)."""
    found: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "skaffold.yaml").read_text()))
    for config in found:
        chosen = next(one for one in config["profiles"] if one["name"] == profile)
        for patch in copy.deepcopy(chosen).get("patches", []):
            assert patch["op"] == "replace"
            *steps, last = patch["path"].strip("/").split("/")
            place: Any = config
            for step in steps:
                place = place[int(step)] if isinstance(place, list) else place[step]
            place[int(last) if isinstance(place, list) else last] = patch["value"]
    return found


def artifacts(profile: str) -> list[dict[str, Any]]:
    return [one for config in configs(profile) for one in config["build"]["artifacts"]]


def merged(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Merge as Helm does: maps into one another, all else replaced."""
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(into.get(key), dict)
        into[key] = merged(into[key], value) if both else value
    return into


def values(release: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in release["valuesFiles"]:
        merged(found, yaml.safe_load((ROOT / file).read_text()))
    for path, template in release["setValueTemplates"].items():
        *steps, last = path.split(".")
        place = found
        for step in steps:
            place = place.setdefault(step, {})
        what, _, image = template.strip("{.}").removeprefix("IMAGE_").partition("_")
        place[last] = image.replace("_", "-") if what == "REPO" else "dev"
    return found


def rendered(profile: str) -> list[list[dict[str, Any]]]:
    """Return the objects of each step, in the order of their application."""
    steps = []
    for config in configs(profile):
        releases = config["deploy"].get("helm", {}).get("releases", [])
        steps += [manifests(ROOT / one["chartPath"], values(one), release=one["name"]) for one in releases]
        if raw := config.get("manifests", {}).get("rawYaml"):
            texts = [(ROOT / file).read_text() for file in raw]
            steps.append([one for text in texts for one in yaml.safe_load_all(text) if one])
    return steps


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("skaffold")) as running:
        yield running


def test_what_is_to_be_synced_is_there() -> None:
    for artifact in artifacts("minimal"):
        folder = Path(artifact["docker"]["dockerfile"]).parent
        assert (ROOT / folder / "pyproject.toml").exists(), artifact["image"]
        for rule in artifact.get("sync", {}).get("manual", []):
            assert list(ROOT.glob(rule["src"])), rule
            assert rule["src"].startswith(rule["strip"])


@pytest.mark.parametrize("profile", PROFILES)
def test_our_images_are_built_and_all_of_them_are_used(profile: str) -> None:
    used = set()
    for objects in rendered(profile):
        for one in objects:
            spec = one.get("spec", {}).get("template", {}).get("spec") or one.get("spec", {})
            for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
                used.add(container["image"].partition(":")[0])
    built = {artifact["image"] for artifact in artifacts(profile)}
    assert {image for image in used if image.startswith("cncmon-")} == built


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_forwarded_is_there(profile: str) -> None:
    services = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for objects in rendered(profile)
        for one in objects
        if one["kind"] == "Service"
    }
    for config in configs(profile):
        for forward in config.get("portForward", []):
            assert forward["port"] in services[forward["resourceName"]]


@pytest.mark.parametrize("profile", PROFILES)
def test_machines_are_the_simulators_and_the_edge_is_theirs(profile: str) -> None:
    objects = [one for step in rendered(profile) for one in step]
    agent = next(one for one in objects if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "hall-cnc-edge")
    variables = {one["name"]: one.get("value") for one in agent["spec"]["template"]["spec"]["containers"][0]["env"]}
    simulator = next(one for one in objects if one["metadata"]["name"] == "simulator" and one["kind"] == "Service")
    profiles = {one["metadata"]["name"] for one in objects if one["kind"] == "MachineProfile"}
    machines = [one["spec"] for one in objects if one["kind"] == "Machine"]
    assert machines
    for machine in machines:
        assert (machine["site"], machine["edge"]) == (
            variables["CNCMON_AGENT_SITE"], variables["CNCMON_AGENT_EDGE"],
        )  # fmt: skip
        assert machine["profileRef"]["name"] in profiles
        assert machine["connection"]["modbus"]["host"] == simulator["metadata"]["name"]
        assert machine["connection"]["modbus"]["port"] in {port["port"] for port in simulator["spec"]["ports"]}


@pytest.mark.needs("kubernetes")
@pytest.mark.parametrize("profile", PROFILES)
def test_an_api_server_takes_it_in_its_order(cluster: Cluster, profile: str) -> None:
    with cluster.namespace() as namespace:
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/warn=restricted")
        for objects in rendered(profile):
            for one in objects:
                for subject in one.get("subjects", []):
                    subject["namespace"] = namespace
            # Pods of tests and hooks are made by Helm later; a pod is refused where its account is not there yet.
            objects.sort(key=lambda one: one["kind"] != "ServiceAccount")
            done = cluster.kubectl(
                "apply", "--server-side", "--force-conflicts", "--validate=strict", "-n", namespace, "-f", "-",
                stdin=yaml.safe_dump_all(objects),
            )  # fmt: skip
            assert "Warning" not in done.stderr
            crds = [one["metadata"]["name"] for one in objects if one["kind"] == "CustomResourceDefinition"]
            if crds:
                cluster.wait_established(*crds)
        assert len(cluster.get("machines", "-n", namespace)["items"]) == 5
