"""Agents in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cncmon_agent.agent import Agent
from cncmon_agent.settings import AgentSettings
from cncmon_core import nats_link


def settings_for(folder: Path, **changes: Any) -> AgentSettings:
    """Settings with short intervals, so that a test need not wait."""
    settings: dict[str, Any] = {
        "site": "hall",
        "edge": "e1",
        "data_dir": str(folder / "agent"),
        "linger_ms": 20,
        "linger_offline_ms": 50,
        "ack_timeout_ms": 500,
        "refused_retry_ms": 100,
        "watermark_poll_ms": 200,
        "heartbeat_ms": 200,
        "state_save_ms": 100,
        "offline_report_ms": 500,
        "retry_delay_ms_max": 300,
        "drain_s_max": 5.0,
    }
    return AgentSettings(**(settings | changes))


def make_agent(nats_url: str, settings: AgentSettings) -> Agent:
    """Return an agent that does not run yet."""
    link = nats_link.NatsLink(
        nats_link.NatsSettings(servers=(nats_url,), retry_delay_ms_base=20, retry_delay_ms_max=200), "agent"
    )
    return Agent(settings, link)


@contextlib.asynccontextmanager
async def running_agent(nats_url: str, settings: AgentSettings) -> AsyncIterator[Agent]:
    """Run an agent until the block ends, then stop it in order."""
    async with running(make_agent(nats_url, settings)) as agent:
        yield agent


@contextlib.asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    """Run an agent that was made until the block ends, then stop it in order."""
    stop = asyncio.Event()
    task = asyncio.create_task(agent.run(stop))
    try:
        yield agent
    finally:
        stop.set()
        await task
