"""Fixtures for every test of the repository, wherever it lies."""

pytest_plugins = ["testkit.fixtures"]
