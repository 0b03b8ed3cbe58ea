"""The exceptions of `cncmon-agent buffer`.

CncmonError
└── InspectError    the command can't do what it was asked for; the text says why, for people
"""

from cncmon_core.errors import CncmonError


class InspectError(CncmonError):
    """The command can't do what it was asked for."""
