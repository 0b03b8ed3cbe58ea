"""The exceptions of the shared parts.

CncmonError
├── SettingsError        a setting can't be used: stop, say which
├── ConfigError          a Machine document can't be used: leave that machine out, say why
│   └── EdgeConfigError  an edge's whole configuration can't be used: go on with the one before, report each problem
├── EdgeDocumentError    the edges' documents can't be got at; the text says why, for people
├── InvalidNameError     a site, edge or machine name breaks the rules
├── RejectedError        bytes that can not be stored, with a reason
│   ├── MessageError     a whole message can't be used: dead-letter it
│   │   └── IdentityError  its identity headers contradict themselves or the payload
│   └── FrameError       one frame can't be used: dead-letter that frame, keep the others
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cncmon_core.edge_config import ConfigProblem


class CncmonError(Exception):
    """Anything that this product raises on purpose."""


class SettingsError(CncmonError):
    """A setting can't be used; the text names the environment variable and what is allowed."""


class ConfigError(CncmonError):
    """A Machine or MachineProfile document can't be used; the text names place, fault and what is allowed."""


class EdgeConfigError(ConfigError):
    """An edge's configuration can't be used; `problems` are `edge_config.ConfigProblem`s, never none.

    revision: that of the document, where it could be made out.
    """

    def __init__(self, problems: "Sequence[ConfigProblem]", revision: int | None = None) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = list(problems)
        self.revision = revision


class EdgeDocumentError(CncmonError):
    """The edges' documents can't be got at: there is no bucket, or others always write first."""


class InvalidNameError(CncmonError, ValueError):
    """A site, edge or machine name breaks the rules of `cncmon_core.names`."""


class RejectedError(CncmonError):
    """Bytes that can't be stored. `reason` is one word for counting, `detail` a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class MessageError(RejectedError):
    """A whole message can't be used."""


class IdentityError(MessageError):
    """The identity headers of a message contradict themselves or its payload."""


class FrameError(RejectedError):
    """One frame can't be used; the other frames of its message can."""
