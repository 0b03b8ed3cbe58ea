"""The exceptions of the agent, by what the caller must do.

CncmonError
├── DriverError           a poll brought nothing: count it, try again at the next
│   ├── UnreachableError  the controller can't be reached or does not answer in time
│   └── ProtocolError     it answers, but not with what was asked
├── FolderError           the data folder can't be used: say so and stop, or go on in memory
│   └── FolderInUseError  another agent has it: stop
└── SpoolError            in buffer.errors: the same of the folder of batches
"""

from cncmon_core.errors import CncmonError


class DriverError(CncmonError):
    """A poll brought nothing; the text says what happened, for people."""


class UnreachableError(DriverError):
    """The controller can't be reached, or does not answer in time."""


class ProtocolError(DriverError):
    """The controller answers, but not with what was asked."""


class FolderError(CncmonError):
    """The data folder can't be used; the text says why, for people."""


class FolderInUseError(FolderError):
    """Another agent runs on the data folder."""
