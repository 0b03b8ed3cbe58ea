"""Figures of the log on disk, for metrics, the heartbeat and people."""

import msgspec


class Counters(msgspec.Struct):
    """What has happened since the start."""

    dropped_segments: int = 0
    dropped_batches: int = 0
    dropped_samples: int = 0
    quarantined_records: int = 0
    abandoned_files: int = 0
    refused_batches: int = 0
    write_errors: int = 0
    sync_errors: int = 0
    read_errors: int = 0
    cold_errors: int = 0
    duplicates: int = 0
    newer_files: int = 0


class SpoolStats(msgspec.Struct, frozen=True):
    """How full the log is, and what has happened since the start.

    warm_bytes: files in the folder, spares included. capacity_bytes: the most that both tiers may take. free_bytes: of
    the folder's file system; -1 when it does not say. dropped_samples: without those of files never scanned.
    """

    warm_bytes: int
    cold_bytes: int
    capacity_bytes: int
    free_bytes: int
    segments: int
    spares: int
    dropped_segments: int
    dropped_batches: int
    dropped_samples: int
    quarantined_records: int
    abandoned_files: int
    refused_batches: int
    write_errors: int
    sync_errors: int
    read_errors: int
    cold_errors: int
    duplicates: int
    newer_files: int
