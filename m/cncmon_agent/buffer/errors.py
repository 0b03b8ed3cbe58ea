"""The exceptions of the log on disk, by what the caller must do.

CncmonError
└── SpoolError           the folder can't be used: say so and stop, or run from memory only
    └── SpoolLockedError another agent uses the folder: stop
"""

from cncmon_core.errors import CncmonError


class SpoolError(CncmonError):
    """The folder of the log can't be used; the text says which call failed and why, for people."""


class SpoolLockedError(SpoolError):
    """Another process holds the folder's lock."""
