"""Fixtures of the tests on a real node."""

from collections.abc import Iterator

import pytest

from testkit.node import Node, running_node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that all these tests share: work in a namespace of your own."""
    with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running
