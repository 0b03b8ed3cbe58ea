"""The figures of ingest, in base units."""

from prometheus_client import Counter, Gauge, Histogram

MESSAGES = Counter("cncmon_ingest_messages", "Messages handled, by what became of them.", ["disposition"])
SAMPLES = Counter("cncmon_ingest_samples", "Samples stored.")
DEAD = Counter("cncmon_ingest_dead_letters", "Frames and whole messages written as dead letters.", ["reason"])
DEAD_EXPIRED = Counter(
    "cncmon_ingest_dead_letters_expired", "Dead letters deleted at the end of their retention, by state.", ["state"]
)
EPOCHS_FORKED = Counter("cncmon_ingest_epochs_forked", "Epochs under which two agents were found to publish.")
MACHINE_MOVES = Counter("cncmon_ingest_machine_moves", "Machines that another edge of their site began to send.")
GAP_BATCHES = Counter(
    "cncmon_ingest_gap_batches", "Batches entered as missing: declared by agents or abandoned.", ["state"]
)
FOLDED = Counter("cncmon_ingest_folded_epochs", "Closed and delivered epochs folded into (epoch, seq).")
HEARTBEATS_BAD = Counter("cncmon_ingest_heartbeats_bad", "Heartbeats that could not be used.")
GENERATIONS = Counter("cncmon_ingest_generations", "Times that the database went back and a new generation began.")
DATABASE_REFUSED = Gauge(
    "cncmon_ingest_database_refused", "1 while this database may not lead: the stream's samples went into another one."
)
MIRROR_ABSURD = Counter("cncmon_ingest_mirror_absurd", "Mirrors of the database that no database can have written.")
DOCUMENTS_ABSURD = Counter("cncmon_ingest_documents_absurd", "Watermark documents whose numbers can't be true.")
FLOORS_ABSURD = Counter("cncmon_ingest_floors_absurd", "Times that a consumer was found ahead of its stream.")
REREAD_PENDING = Gauge("cncmon_ingest_reread_pending_messages", "Messages of the stream that are to be read again.")
SUSPECTS = Counter(
    "cncmon_ingest_suspects", "Messages tried in the isolated process, by what became of them.", ["outcome"]
)
SUSPECT_GROUPS_HALVED = Counter(
    "cncmon_ingest_suspect_groups_halved",
    "Groups of suspects that ended the isolated process, or were late, and were halved.",
)
SUSPECTS_DEFERRED = Counter(
    "cncmon_ingest_suspects_deferred",
    "Suspects that were given back for a while: too many, or the database out of reach.",
)
EDGE_CLONES = Gauge("cncmon_ingest_edge_clones", "Processes under one edge's name, where several.", ["site", "edge"])
COMMIT_SECONDS = Histogram(
    "cncmon_ingest_commit_seconds",
    "Duration of one transaction.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
COMMIT_SAMPLES = Histogram(
    "cncmon_ingest_commit_samples", "Samples in one transaction.", buckets=(1, 10, 50, 100, 500, 1000, 5000, 20000)
)
HOLDING = Gauge("cncmon_ingest_holding", "1 while the database can't be used and messages are held.")
HOLDS = Counter("cncmon_ingest_holds", "Times that messages had to be held.")
RETRIES = Counter("cncmon_ingest_transaction_retries", "Transactions tried again after a deadlock or lock time-out.")
LEADER = Gauge("cncmon_ingest_leader", "1 in the worker that computes the watermarks.")
PENDING = Gauge("cncmon_ingest_stream_pending_messages", "Messages in the stream that no worker has been given yet.")
ACK_PENDING = Gauge("cncmon_ingest_ack_pending_messages", "Messages given to workers and not acknowledged yet.")
FLOOR = Gauge("cncmon_ingest_committed_floor", "Stream sequence up to which everything is committed.")
STREAM_FILL = Gauge("cncmon_ingest_stream_fill_ratio", "How full CNC_DATA is, by bytes or messages, 0 to 1.")
STREAM_PRESSURE = Gauge(
    "cncmon_ingest_stream_pressure", "1 while purging what is committed does not bring the stream under its limit."
)
PURGED = Counter("cncmon_ingest_stream_purged_messages", "Committed messages purged to make room.")
ROLLUP_SECONDS = Histogram(
    "cncmon_ingest_rollup_round_seconds",
    "Duration of one round of computing rollups and states.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
ROLLUP_RANGES = Counter("cncmon_ingest_rollup_ranges", "Ranges of a machine whose rollups and states were computed.")
ROLLUP_FAILURES = Counter("cncmon_ingest_rollup_failures", "Ranges put aside: they could not be computed.")
ROLLUP_LAG = Gauge("cncmon_ingest_rollup_dirty_marks", "Marks of ranges that wait to be computed.")
DROPPED_CHUNKS = Counter("cncmon_ingest_dropped_chunks", "Chunks or partitions dropped by retention.", ["table"])
MAINTAINER = Gauge("cncmon_ingest_maintainer", "1 in the worker that computes rollups and keeps retention.")
STEP_FAILURES = Counter(
    "cncmon_ingest_maintenance_step_failures",
    "Turns of a step of maintenance that failed; each is tried again.",
    ["step"],
)
UNSAFE_SETTINGS = Gauge(
    "cncmon_ingest_database_unsafe_settings",
    "1: with this setting the server can lose what it acknowledged.",
    ["setting"],
)
