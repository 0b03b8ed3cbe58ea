"""Fixtures of the tests on a real node."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.images import our_images, system_images
from testkit.kubernetes import ROOT
from testkit.node import Node, running_node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that all these tests share: work in a namespace of your own."""
    with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's images, built into podman's storage and written into one file."""
    made = subprocess.run([ROOT / "scripts/setup-cluster.sh", "node"], check=True, stdout=subprocess.PIPE, text=True)
    system_images(Path(made.stdout.strip()))
    return our_images(tmp_path_factory.mktemp("images") / "images.tar")
