"""What the agent's tests share: settings with short times, batches, machines read through real Machine documents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from cncmon_agent.batch import Batch, Source, make
from cncmon_agent.settings import AgentSettings
from cncmon_core.machine import API_VERSION, Connection, Machine, MachineSpec, Metadata, ModbusConnection, Signal

settings.register_profile("cncmon", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
settings.load_profile("cncmon")

MakeBatch = Callable[..., Batch]
MakeSettings = Callable[..., AgentSettings]
MakeMachine = Callable[..., Machine]


@pytest.fixture
def batch_of() -> MakeBatch:
    """Return a maker of small batches; `size` is that of its one frame, unless `frames` are given."""

    def of(
        seq: int,
        size: int = 10,
        *,
        epoch: int = 77,
        kind: Any = "samples",
        created_ms: int = 0,
        frames: list[bytes] | None = None,
        source: Source | None = None,
    ) -> Batch:
        return make(epoch, seq, seq - 1, kind, frames or [b"x" * size], 1, created_ms, source)

    return of


@pytest.fixture
def settings_of(tmp_path: Path) -> MakeSettings:
    """Return a maker of settings with short times."""

    def of(**changes: Any) -> AgentSettings:
        defaults: dict[str, Any] = {
            "data_dir": str(tmp_path / "agent"),
            "linger_ms": 20,
            "linger_offline_ms": 20,
            "offline_report_ms": 300,
            "retry_delay_ms_max": 200,
        }
        return AgentSettings(**(defaults | changes))

    return of


@pytest.fixture
def machine_of() -> MakeMachine:
    """Return a maker of machines of Modbus signals."""

    def of(signals: list[Signal], port: int = 502, *, poll_interval_ms: int = 1000, **connection: Any) -> Machine:
        modbus = ModbusConnection(**({"host": "127.0.0.1", "port": port, "timeout_ms": 300} | connection))
        spec = MachineSpec(connection=Connection(modbus=modbus), signals=signals, poll_interval_ms=poll_interval_ms)
        return Machine(api_version=API_VERSION, metadata=Metadata(name="m"), spec=spec)

    return of
