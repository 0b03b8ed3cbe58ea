"""What the agent may not carry: each of these costs more memory than the agent itself may take."""

import subprocess
import sys

import pytest

LOADED = """
import sys
import cncmon_agent.main
{more}
print("\\n".join(name for name, module in sys.modules.items() if module is not None))
"""
HEAVY = ("numpy", "aiohttp", "asyncua", "fastapi", "asyncpg", "pydantic", "grpc", "uvicorn", "kopf", "httpx", "rich")


def loaded(more: str = "") -> set[str]:
    code = LOADED.format(more=more)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    return set(said.split())


@pytest.mark.parametrize("more", ["", "import cncmon_agent.drivers.modbus.driver"], ids=["agent", "with modbus"])
def test_the_agent_imports_nothing_heavy(more: str) -> None:
    found = loaded(more)
    assert "cncmon_agent.agent" in found
    assert found & set(HEAVY) == set()


def test_a_driver_s_library_is_imported_by_that_driver_alone() -> None:
    assert "pymodbus" not in loaded()
    assert "pymodbus" in loaded("import cncmon_agent.drivers.modbus.driver")
