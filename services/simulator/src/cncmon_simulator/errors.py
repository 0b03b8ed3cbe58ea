"""The exceptions of the simulator.

SimulatorError
├── FaultError             a fault can't be set as asked: says what is allowed (HTTP 400)
├── UnknownMachineError    no machine has that name (HTTP 404)
└── PollLogError           a poll log holds a line that is no record

Settings that can't be used, a port in use among them, are `cncmon_core.errors.SettingsError`.
"""

from cncmon_core.errors import CncmonError


class SimulatorError(CncmonError):
    """Anything that the simulator raises on purpose."""


class FaultError(SimulatorError):
    """A fault can't be set as asked; the text says what is allowed."""


class UnknownMachineError(SimulatorError):
    """No simulated machine has that name; the text says which names there are."""


class PollLogError(SimulatorError):
    """A poll log holds a line that is no record; the text names file and line."""
