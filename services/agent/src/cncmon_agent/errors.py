"""The exceptions of the agent, by what the caller must do.

CncmonError
└── DriverError          a poll brought nothing: count it, try again at the next
    ├── UnreachableError the controller can't be reached or does not answer in time
    └── ProtocolError    it answers, but not with what was asked
"""

from cncmon_core.errors import CncmonError


class DriverError(CncmonError):
    """A poll brought nothing; the text says what happened, for people."""


class UnreachableError(DriverError):
    """The controller can't be reached, or does not answer in time."""


class ProtocolError(DriverError):
    """The controller answers, but not with what was asked."""
