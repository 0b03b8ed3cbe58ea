"""The exceptions of the operator.

CncmonError
└── OperatorError         the text says why, for people
    └── ForeignError      a document was written by somebody else, and would lose machines
"""

from cncmon_core.errors import CncmonError


class OperatorError(CncmonError):
    """The operator can't do what it should."""


class ForeignError(OperatorError):
    """An edge's document was written by somebody else and names machines that no resource does."""
