"""Fixtures of the tests on a real Kubernetes API."""

from collections.abc import Iterator

import pytest

from testkit.kubernetes import ROOT, Cluster, ControlPlane, running_cluster
from testkit.waiting import until_blocking

FILES = ROOT / "charts/cnc-monitor/files"

_BEYOND_THE_SCHEMA = """
apiVersion: cncmon.dev/v1alpha1
kind: MachineProfile
metadata: {name: probe, namespace: default}
spec: {signals: [{name: probe, register: 1, enumeration: {x: y}}]}
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Kubernetes API that all tests of a process share: work in a namespace of your own."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def resources(cluster: Cluster) -> Cluster:
    """The cluster, with our resources' definitions and admission policy in force."""
    cluster.kubectl("apply", "--server-side", "-f", str(FILES / "crds"), "-f", str(FILES / "admission"))
    cluster.wait_established(*(f"{path.stem}.cncmon.dev" for path in (FILES / "crds").iterdir()))
    # A policy is in force some time after it is stored.

    def refused() -> bool:
        tried = ("create", "--dry-run=server", "-f", "-")
        return bool(cluster.kubectl(*tried, stdin=_BEYOND_THE_SCHEMA, check=False).returncode)

    until_blocking(refused, what="the admission policy is in force")
    return cluster


@pytest.fixture
def namespace(resources: Cluster) -> Iterator[str]:
    """A namespace for one test."""
    with resources.namespace() as name:
        yield name


@pytest.fixture
def own_control_plane(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ControlPlane]:
    """A control plane for one test that breaks it, whatever KUBECONFIG says."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        assert isinstance(running, ControlPlane)
        yield running
