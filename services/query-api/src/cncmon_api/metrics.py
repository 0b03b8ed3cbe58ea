"""What the API counts (Prometheus, base units)."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("cncmon_api_requests", "Requests answered, by route template.", ["route", "method", "status"])
LATENCY = Histogram(
    "cncmon_api_request_duration_seconds",
    "Time from a request's headers to the end of its answer; live streams are left out.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
REFUSED = Counter(
    "cncmon_api_refused", "Requests and connections refused or cut off because a limit was reached.", ["limit"]
)
LIVE_CLIENTS = Gauge("cncmon_api_live_clients", "Open live streams.")
LIVE_DROPPED = Counter("cncmon_api_live_clients_dropped", "Live streams ended because their client read too slowly.")
LIVE_CUT = Counter("cncmon_api_live_samples_cut", "New samples left out of live because one tick held too many.")
TICK = Histogram(
    "cncmon_api_live_tick_duration_seconds",
    "Time to read what is new for all machines.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
DATABASE_UP = Gauge("cncmon_api_database_up", "1 if the last query could be run.")
MACHINES_LEFT_OUT = Gauge("cncmon_api_machines_left_out", "Machines beyond those that this service follows.")
