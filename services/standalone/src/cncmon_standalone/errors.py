"""The exceptions of the standalone command.

CncmonError
└── StandaloneError     what the user is told, in words that say what to do; `exit_status` is the command's
    ├── PartError       one of the parts can't be run
    ├── InUseError      a port or a data folder is taken
    ├── NotRunningError there is nothing to ask or to stop
    ├── UnusableError   what the user gave can't be used: an option, a Machine file
    └── StopRequestedError the user asked to stop before everything ran
"""

from cncmon_core.errors import CncmonError


class StandaloneError(CncmonError):
    """Something the user can act on; its text is printed as it is."""

    exit_status = 1


class PartError(StandaloneError):
    """A part can't be run."""


class InUseError(StandaloneError):
    """A port or a data folder is used by another program."""


class NotRunningError(StandaloneError):
    """Nothing runs on the data folder."""

    exit_status = 3


class UnusableError(StandaloneError):
    """An option or a file of the user's can't be used."""

    exit_status = 2


class StopRequestedError(StandaloneError):
    """The user asked to stop while the parts were still starting."""

    exit_status = 130
