"""What the agent may not carry: each of these costs more memory than the agent itself may take."""

import subprocess
import sys

import pytest

from testkit.waiting import WAIT_S_MAX

LOADED = """
import sys
import cncmon_agent.main
{more}
print("\\n".join(name for name, module in sys.modules.items() if module is not None))
"""
HEAVY = (
    "numpy",
    "aiohttp",
    "asyncua",
    "fastapi",
    "asyncpg",
    "pydantic",
    "grpc",
    "uvicorn",
    "kopf",
    "httpx",
    "rich",
    "pymodbus",
    "pyarrow",
)


def loaded(more: str = "") -> set[str]:
    code = LOADED.format(more=more)
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=WAIT_S_MAX
    ).stdout
    return set(said.split())


@pytest.mark.parametrize("more", ["", "import cncmon_agent.drivers.modbus.driver"], ids=["agent", "with modbus"])
def test_the_agent_imports_nothing_heavy(more: str) -> None:
    found = loaded(more)
    assert "cncmon_agent.agent" in found
    assert found & set(HEAVY) == set()


def test_a_driver_is_imported_where_a_machine_has_it_and_not_before() -> None:
    assert not {name for name in loaded() if name.startswith("cncmon_agent.drivers.")}


def test_nothing_reads_the_lists_of_what_is_installed() -> None:
    assert "importlib.metadata" not in loaded("import cncmon_agent.drivers.modbus.driver")
