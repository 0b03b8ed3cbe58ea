"""Prometheus metrics, counted where they are asked for: a poll has no time to spare for a counter of its own."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cncmon_simulator.fleet import Fleet


class FleetMetrics(Collector):
    """`cncmon_simulator_polls_total`, `cncmon_simulator_machines` and `cncmon_simulator_machines_with_faults`."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        machines = list(self._fleet.machines.values())
        yield CounterMetricFamily(
            "cncmon_simulator_polls", "Polls that took a snapshot, of all machines.", sum(m.counter for m in machines)
        )
        yield GaugeMetricFamily("cncmon_simulator_machines", "Simulated machines.", len(machines))
        yield GaugeMetricFamily(
            "cncmon_simulator_machines_with_faults",
            "Machines with a fault set.",
            sum(bool(m.faults.active()) for m in machines),
        )
