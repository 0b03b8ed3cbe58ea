"""Simulated CNC machines, each a real Modbus TCP server, with faults on command and a log of every answered poll.

Belongs here: what a machine does over time (`reference`, `shop`), how it looks through its controller's registers
(`register_map`, `modbus`), and what a test needs to know about what was really answered (`poll_log`).

Does not belong here: how machines are read (that is the agent's), and anything of NATS or a database.
"""

from cncmon_simulator.service import Simulator, running
from cncmon_simulator.settings import Settings

__all__ = ["Settings", "Simulator", "running"]
