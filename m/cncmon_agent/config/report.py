"""What the heartbeat says of the configuration."""

from typing import Literal

import msgspec

from cncmon_core.edge_config import ConfigProblem

Source = Literal["kv", "disk", "files", "none"]


class ConfigReport(msgspec.Struct):
    """Which configuration is in force.

    revision, sha256: of the document, None where there is none (files have no revision). source: `kv` as the bucket has
    it; `disk` the last good one, because the bucket was not heard yet or holds none; `files` fixed ones; `none`.
    errors: what is wrong with the newest document, or with keeping it; the one in force runs on until a good one comes.
    refused_revision: that of the refused document, where it could be made out.
    """

    revision: int | None = None
    sha256: str | None = None
    source: Source = "none"
    errors: list[ConfigProblem] = []
    refused_revision: int | None = None
