"""What a node in the hall is given: k3s/ against the chart, and on an API server."""

import re
from typing import Any

import pytest
import yaml

from testkit.charts import EDGE, environment, find, manifests
from testkit.kubernetes import ROOT, Cluster

K3S = ROOT / "k3s"


def documents(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((K3S / name).read_text()) if one]


def helm_chart() -> dict[str, Any]:
    return next(one for one in documents("manifests/cnc-edge.yaml") if one["kind"] == "HelmChart")


def test_the_chart_that_is_served_is_this_one() -> None:
    chart = yaml.safe_load((EDGE / "Chart.yaml").read_text())
    archive = f"{chart['name']}-{chart['version']}.tgz"
    assert helm_chart()["spec"]["chart"] == f"https://%{{KUBERNETES_API}}%/static/charts/{archive}"
    text = (K3S / "README.md").read_text()
    assert archive in text
    assert f"cncmon-agent-{chart['appVersion']}.tar" in text


def test_the_buffer_fits_its_volume_and_the_agent_its_namespace() -> None:
    spec = helm_chart()["spec"]
    objects = manifests(EDGE, yaml.safe_load(spec["valuesContent"]))
    agent = find(objects, "StatefulSet", "-edge")
    size = agent["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    variables = environment(agent["spec"]["template"]["spec"])
    assert int(variables["CNCMON_AGENT_SPOOL_BYTES_MAX"]) < int(size.removesuffix("Gi")) << 30
    namespace = next(one for one in documents("manifests/cnc-edge.yaml") if one["kind"] == "Namespace")
    assert spec["targetNamespace"] == namespace["metadata"]["name"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_readme_names_every_file() -> None:
    links = set(re.findall(r"\]\(([^)#]+)\)", (K3S / "README.md").read_text()))
    files = {str(path.relative_to(K3S)) for path in K3S.rglob("*.yaml")}
    assert files <= links
    assert all((K3S / link).exists() for link in links if "://" not in link)


@pytest.mark.needs("kubernetes")
def test_an_api_server_takes_the_node_s_manifests_and_privilege_is_in_one_place(cluster: Cluster) -> None:
    spec = yaml.safe_load(helm_chart()["spec"]["valuesContent"])
    with cluster.namespace() as namespace:
        labels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
        cluster.kubectl("label", "namespace", namespace, *labels)
        objects = manifests(EDGE, spec)
        objects.sort(key=lambda one: one["kind"] != "ServiceAccount")
        done = cluster.kubectl(
            "apply", "--server-side", "--validate=strict", "-n", namespace, "-f", "-",
            stdin=yaml.safe_dump_all([one for one in objects if one["kind"] != "Pod"]),
        )  # fmt: skip
        assert "Warning" not in done.stderr
        # The plugin is refused where the agent is, and taken in a namespace like its own.
        plugin = find(documents("devices.yaml"), "DaemonSet", "plugin")
        plugin["metadata"].pop("namespace")
        # A control plane of ours allows no privileged container at all; "restricted" refuses hostPath just as well.
        plugin["spec"]["template"]["spec"]["containers"][0]["securityContext"].pop("privileged")
        text = yaml.safe_dump(plugin)
        apply = ("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-")
        assert "would violate PodSecurity" in cluster.kubectl(*apply, "-n", namespace, stdin=text).stderr
    with cluster.namespace() as namespace:
        own = find(documents("devices.yaml"), "Namespace", "cnc-devices")["metadata"]["labels"]
        # Of workloads, the API server says so by a warning.
        level = own["pod-security.kubernetes.io/enforce"]
        cluster.kubectl("label", "namespace", namespace, f"pod-security.kubernetes.io/warn={level}")
        assert "Warning" not in cluster.kubectl(*apply, "-n", namespace, stdin=text).stderr
