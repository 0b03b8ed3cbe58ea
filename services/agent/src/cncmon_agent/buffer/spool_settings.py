"""The bounds of the log on disk."""

from typing import Annotated

import msgspec
from msgspec import Meta


class SpoolSettings(msgspec.Struct, frozen=True):
    """The bounds of the log on disk."""

    segment_bytes: Annotated[
        int, Meta(ge=16 << 10, le=64 << 20, description="Bytes of a segment file, whole 4 KiB pages.")
    ] = 4 << 20
    spool_bytes_max: Annotated[int, Meta(description="Bytes of segment files in the folder, spares included.")] = (
        2 << 30
    )
    cold_dir: Annotated[str, Meta(description="Folder of the cold tier, such as a USB disk; empty: in the folder.")] = (
        ""
    )
    cold_bytes_max: Annotated[
        int, Meta(ge=0, description="Bytes in `cold_dir`; without one, cold files count in `spool_bytes_max`.")
    ] = 8 << 30
    reserve_bytes: Annotated[
        int, Meta(ge=0, description="Bytes of the file system that are left to others when a file is made.")
    ] = 32 << 20
    quarantine_bytes_max: Annotated[int, Meta(ge=0, description="Bytes of damaged records kept for people.")] = 16 << 20
    unsynced_bytes_max: Annotated[
        int, Meta(ge=1 << 16, description="Memory for what is not synced yet; then batches are refused.")
    ] = 8 << 20
