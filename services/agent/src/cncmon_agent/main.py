"""`cncmon-agent`: reads this edge's machines and ships what they say. All settings come from the environment."""

import cncmon_core.lean  # noqa: F401, I001 before anything that could take its libraries along

import argparse
import asyncio
import sys

from cncmon_agent.agent import Agent
from cncmon_agent.buffer.errors import SpoolError
from cncmon_agent.errors import FolderError
from cncmon_agent.settings import AgentSettings
from cncmon_core import nats_link, service, settings
from cncmon_core.monitor import Health

_WHAT = """Without a command: reads this edge's machines and ships what they say, until SIGTERM. Exit status 0 then,
1 where the data folder can't be used, 2 where a setting or an argument is wrong."""


async def run_agent(health: Health, stop: asyncio.Event) -> None:
    """Build the agent from its settings and run it."""
    ours = settings.load(AgentSettings, "AGENT")
    link = nats_link.NatsLink(settings.load(nats_link.NatsSettings, "NATS"), f"cncmon-agent {ours.site}.{ours.edge}")
    agent = Agent(ours, link)
    health.ready_when("nats", link.check)
    health.ready_when("stream", lambda: agent.publisher.stream_error)
    health.ready_when("buffer", lambda: agent.storage.memory_only if ours.spool != "off" else None)
    health.live_when("publishing", agent.stuck)
    health.live_when("machines", agent.machines.healthy)
    await agent.run(stop)


def main() -> None:
    """Run until SIGTERM; or look at what is on disk (`cncmon-agent buffer`)."""
    parser = argparse.ArgumentParser(
        prog="cncmon-agent",
        usage="%(prog)s [-h] [buffer ls|verify|export …]",
        description=_WHAT,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="command", prog="cncmon-agent")
    if len(sys.argv) > 1:
        # What runs for years has no need of it.
        from cncmon_agent.inspect import command

        command.add_parser(commands)
    arguments = parser.parse_args()
    if arguments.command is not None:
        sys.exit(command.run(arguments))
    try:
        sys.exit(service.run("agent", run_agent))
    except (FolderError, SpoolError) as error:
        sys.exit(f"cncmon-agent: {error}")
    except OSError as error:
        sys.exit(f"cncmon-agent: {error.filename or 'the data folder'} can't be used: {error.strerror or error}")


def _epilog() -> str:
    rows = [*settings.describe(AgentSettings, "AGENT"), *settings.describe(nats_link.NatsSettings, "NATS")]
    return "settings:\n" + "\n".join(f"  {name}={default}\n      {text}" for name, default, text in rows)


if __name__ == "__main__":
    main()
