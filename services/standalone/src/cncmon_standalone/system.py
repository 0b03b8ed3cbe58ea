"""Which parts make up CNC Monitor on one machine, with which settings, and which of them needs which."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cncmon_standalone import ports
from cncmon_standalone.embedded import nats, postgres
from cncmon_standalone.embedded.process import Command
from cncmon_standalone.folder import DataFolder
from cncmon_standalone.supervise import probes
from cncmon_standalone.supervise.part import Part

API_PORT, NATS_PORT, POSTGRES_PORT = 8480, 8481, 8482
"""One family of ports, away from 4222 and 5432: those are often taken by a server of the user's own."""

WORKERS_MAX = 16


@dataclass(frozen=True)
class Edge:
    """One agent: the machines of a (site, edge)."""

    site: str = "default"
    edge: str = "edge"


@dataclass(frozen=True)
class Simulation:
    """The simulated machines of a demo. `hz`: polls a second of each machine."""

    machines: int
    hz: float
    behaviour: str
    seed: int
    control_port: int
    poll_log: Path | None = None

    @property
    def poll_interval_ms(self) -> int:
        """Time between two polls."""
        return max(10, round(1000 / self.hz))


@dataclass(frozen=True)
class Plan:
    """Everything that is to run. What the agents read is not said here: they are told while they run (`configure`).

    ingest_settings: variables beside those that follow from the rest.
    """

    folder: DataFolder
    edges: Sequence[Edge] = (Edge(),)
    workers: int = 1
    api_port: int = API_PORT
    nats_port: int = NATS_PORT
    postgres_port: int = POSTGRES_PORT
    simulation: Simulation | None = None
    accepted_log: Path | None = None
    log_level: str = "info"
    ingest_settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def api_url(self) -> str:
        """The page, and the API under /api/v1."""
        return f"http://127.0.0.1:{self.api_port}/"

    @property
    def simulator_url(self) -> str | None:
        """The control API of the simulated machines, where there are any."""
        return f"http://127.0.0.1:{self.simulation.control_port}" if self.simulation else None

    @property
    def nats_url(self) -> str:
        """For clients of NATS."""
        return nats.url(self.nats_port)

    @property
    def cluster(self) -> postgres.PostgresCluster:
        """The PostgreSQL."""
        return postgres.PostgresCluster(self.folder.root / "postgres", self.postgres_port)

    @property
    def simulated_file(self) -> Path:
        """Where the simulator writes its Machine documents."""
        return self.folder.root / "simulator" / "machines.yaml"

    def agent_folder(self, edge: Edge) -> Path:
        """Where an agent keeps its data."""
        return self.folder.root / "agent" / f"{edge.site}.{edge.edge}"

    def wanted_ports(self) -> list[ports.WantedPort]:
        """The ports that the user may choose."""
        return [
            ports.WantedPort(self.api_port, "the page and the API", "--api-port"),
            ports.WantedPort(self.nats_port, "NATS", "--nats-port"),
            ports.WantedPort(self.postgres_port, "PostgreSQL", "--postgres-port"),
        ]


def parts(plan: Plan) -> list[Part]:
    """Return the parts in the order in which they are started; they are stopped in the opposite one.

    Those that wait for others by themselves are not made to wait by us: importing Python code is most of a start.
    """
    build = _Build(plan)
    found = [build.postgres(), build.nats()]
    if plan.simulation:
        found.append(build.simulator(plan.simulation))
    found += [build.bootstrap(), build.api(), *build.ingest()]
    found += [build.agent(edge) for edge in plan.edges]
    return found


class _Build:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        simulated = plan.simulation.machines if plan.simulation else 0
        taken = [want.port for want in plan.wanted_ports()]
        row = ports.pick(simulated + 1 + plan.workers + len(plan.edges), avoid=taken)
        self._simulated_ports, self._monitor_ports = row[:simulated], iter(row[simulated:])

    def postgres(self) -> Part:
        cluster, port = self._plan.cluster, self._plan.postgres_port
        return Part(
            name="postgres",
            group="postgres",
            title=f"PostgreSQL on port {port}",
            command=cluster.prepare,
            ready=probes.postgres(cluster.dsn),
        )

    def nats(self) -> Part:
        folder, port = self._plan.folder.root / "nats", self._plan.nats_port
        return Part(
            name="nats",
            group="nats",
            title=f"NATS JetStream on port {port}",
            command=lambda: nats.command(folder, port),
            ready=probes.nats_server(port),
        )

    def simulator(self, simulation: Simulation) -> Part:
        first, last = self._simulated_ports[0], self._simulated_ports[-1]
        environ = {
            "CNCMON_SIMULATOR_MACHINES": str(simulation.machines),
            "CNCMON_SIMULATOR_BEHAVIOUR": simulation.behaviour,
            "CNCMON_SIMULATOR_SEED": str(simulation.seed),
            "CNCMON_SIMULATOR_PORT_BASE": str(first),
            "CNCMON_SIMULATOR_POLL_INTERVAL_MS": str(simulation.poll_interval_ms),
            "CNCMON_SIMULATOR_CONTROL_PORT": str(simulation.control_port),
            "CNCMON_SIMULATOR_MACHINES_FILE": str(self._plan.simulated_file),
            "CNCMON_SIMULATOR_POLL_LOG": str(simulation.poll_log or ""),
        }
        title = f"{simulation.machines} Modbus TCP machines on ports {first} to {last}"
        return self._service("simulator", "simulator", title, environ, folder=self._plan.simulated_file.parent)

    def bootstrap(self) -> Part:
        return Part(
            name="bootstrap",
            group="bootstrap",
            title="Tables, streams and buckets",
            command=lambda: self._python("bootstrap", "cncmon_ingest.main", self._ingest_environ(), ["bootstrap"]),
            ready=None,
            after=("postgres", "nats"),
            once=True,
        )

    def api(self) -> Part:
        port = self._plan.api_port
        environ = {"CNCMON_API_DATABASE_DSN": self._plan.cluster.dsn, "CNCMON_API_PORT": str(port)}
        return Part(
            name="api",
            group="api",
            title=f"Page and API on port {port}",
            command=lambda: self._python("api", "cncmon_api.main", environ),
            ready=probes.http(port),
            monitor_port=port,
        )

    def ingest(self) -> list[Part]:
        environ, after = self._ingest_environ(), ("postgres", "nats")
        return [
            self._service(name, "ingest", "Ingest worker", environ, after=after, arguments=["run"])
            for name in self._worker_names()
        ]

    def _worker_names(self) -> list[str]:
        return ["ingest"] if self._plan.workers == 1 else [f"ingest-{n}" for n in range(1, self._plan.workers + 1)]

    def _ingest_environ(self) -> dict[str, str]:
        # This NATS serves this PostgreSQL alone: one that was restored or updated has the next samples all the same.
        own = {"CNCMON_INGEST_DATABASE_DSN": self._plan.cluster.dsn, "CNCMON_INGEST_ADOPT_DATABASE": "true"}
        return {**own, **self._plan.ingest_settings}

    def agent(self, edge: Edge) -> Part:
        plan = self._plan
        folder = plan.agent_folder(edge)
        environ = {
            "CNCMON_AGENT_SITE": edge.site,
            "CNCMON_AGENT_EDGE": edge.edge,
            "CNCMON_AGENT_DATA_DIR": str(folder),
            "CNCMON_AGENT_ACCEPTED_LOG": str(plan.accepted_log or ""),
        }
        name = "agent" if len(plan.edges) == 1 else f"agent-{edge.site}-{edge.edge}"
        after = ("bootstrap", *(["simulator"] if plan.simulation else []))
        if plan.accepted_log:
            # What is measured must not be the start of the others: the first poll comes when everything runs.
            after = (*after, "api", *self._worker_names())
        return self._service(name, "agent", f"Edge agent {edge.site}/{edge.edge}", environ, after=after, folder=folder)

    def _service(
        self,
        name: str,
        group: str,
        title: str,
        environ: dict[str, str],
        *,
        after: tuple[str, ...] = (),
        arguments: Sequence[str] = (),
        folder: Path | None = None,
    ) -> Part:
        """Return one of our own services, which answers /readyz on a monitor port of its own."""
        port = next(self._monitor_ports)
        monitored = environ | {"CNCMON_SERVICE_MONITOR_PORT": str(port)}
        return Part(
            name=name,
            group=group,
            title=title,
            command=lambda: self._python(name, f"cncmon_{group}.main", monitored, arguments, folder),
            ready=probes.http(port),
            after=after,
            monitor_port=port,
        )

    def _python(
        self,
        name: str,
        module: str,
        environ: dict[str, str],
        arguments: Sequence[str] = (),
        folder: Path | None = None,
    ) -> Command:
        folder = folder or self._plan.folder.run
        folder.mkdir(parents=True, exist_ok=True)
        common = {"CNCMON_NATS_SERVERS": self._plan.nats_url, "CNCMON_SERVICE_LOG_LEVEL": self._plan.log_level}
        # -P: a stray .py file in the working folder must not take a library's place.
        return Command(name, [sys.executable, "-P", "-m", module, *arguments], common | environ, folder)
