"""Fixtures for every test of the repository, wherever it lies."""

import os
import sys
from pathlib import Path

pytest_plugins = ["testkit.fixtures"]

# What Python compiled is kept, in .venv: a service starts in a third of the time with it, and tests start hundreds.
# Some environments forbid it (PYTHONDONTWRITEBYTECODE), for the sake of a tree that stays clean.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(Path(sys.prefix) / "pycache")
sys.dont_write_bytecode = False
