"""The state that a sample is evidence of, as SQL over columns of `sensor_data`: one rule wherever a state is reported.

The wall, live, series, intervals and rollups all ask the database's function `sample_state` (migration 0003): offline
where the sender says so or nothing was measured; alarm where the state or a code in `extras` says so; else the state;
without one, running where a spindle or an axis moves, and idle. Where no sample says anything it is `no_data`, which is
computed and never taken from a sender.
"""

from typing import Final, Literal

State = Literal["running", "idle", "alarm", "hold", "offline", "no_data"]
NO_DATA: Final = "no_data"

MEASURED_SQL: Final = (
    "num_nonnulls(temperature, spindle_speed, x_pos_mm, y_pos_mm, z_pos_mm, feed_rate_actual, spindle_load_percent, "
    "total_power_kw) > 0"
)
"""Whether the controller answered with anything; an anomaly score is computed, not measured."""

STATE_SQL: Final = f"sample_state(machine_state, sample_alarm(extras), spindle_speed, feed_rate_actual, {MEASURED_SQL})"
