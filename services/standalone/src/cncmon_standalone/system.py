"""Which parts make up CNC Monitor on one machine, with which settings, and which of them needs which."""

import sys
from collections.abc import Sequence
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
    poll_log: Path | None = None

    @property
    def poll_interval_ms(self) -> int:
        """Time between two polls."""
        return max(10, round(1000 / self.hz))


@dataclass(frozen=True)
class Plan:
    """Everything that is to run. `machines`: files and folders of Machine documents, in addition to the simulated ones."""

    folder: DataFolder
    edges: Sequence[Edge] = (Edge(),)
    machines: Sequence[Path] = ()
    workers: int = 1
    api_port: int = API_PORT
    nats_port: int = NATS_PORT
    postgres_port: int = POSTGRES_PORT
    simulation: Simulation | None = None
    accepted_log: Path | None = None
    log_level: str = "info"
    _monitor_ports: list[int] = field(default_factory=list)

    @property
    def api_url(self) -> str:
        """The page, and the API under /api/v1."""
        return f"http://127.0.0.1:{self.api_port}/"

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
    """Return the parts in the order in which they are started; they are stopped in the opposite one."""
    found = [_postgres(plan), _nats(plan)]
    if plan.simulation:
        found.append(_simulator(plan, plan.simulation))
    found.append(_bootstrap(plan))
    found.append(_api(plan))
    found += _ingest(plan)
    found += [_agent(plan, edge) for edge in plan.edges]
    return found


def _postgres(plan: Plan) -> Part:
    cluster = plan.cluster
    return Part(
        name="postgres",
        group="postgres",
        title=f"PostgreSQL on port {plan.postgres_port}",
        command=cluster.prepare,
        ready=probes.postgres(lambda: cluster.dsn),
    )


def _nats(plan: Plan) -> Part:
    return Part(
        name="nats",
        group="nats",
        title=f"NATS JetStream on port {plan.nats_port}",
        command=lambda: nats.command(plan.folder.root / "nats", plan.nats_port),
        ready=probes.nats_server(plan.nats_port),
    )


def _simulator(plan: Plan, simulation: Simulation) -> Part:
    row = ports.pick(simulation.machines)
    environ = {
        "CNCMON_SIMULATOR_MACHINES": str(simulation.machines),
        "CNCMON_SIMULATOR_BEHAVIOUR": simulation.behaviour,
        "CNCMON_SIMULATOR_SEED": str(simulation.seed),
        "CNCMON_SIMULATOR_PORT_BASE": str(row[0]),
        "CNCMON_SIMULATOR_POLL_INTERVAL_MS": str(simulation.poll_interval_ms),
        "CNCMON_SIMULATOR_CONTROL_PORT": "0",
        "CNCMON_SIMULATOR_MACHINES_FILE": str(plan.simulated_file),
        "CNCMON_SIMULATOR_POLL_LOG": str(simulation.poll_log or ""),
    }
    folder = plan.simulated_file.parent
    title = f"{simulation.machines} simulated machines (Modbus TCP), ports {row[0]} to {row[-1]}"
    return _service(plan, "simulator", "simulator", title, "cncmon_simulator.main", environ, folder, ())


def _bootstrap(plan: Plan) -> Part:
    return Part(
        name="bootstrap",
        group="bootstrap",
        title="Tables, streams and buckets",
        command=lambda: _python(plan, "bootstrap", "cncmon_ingest.main", ["bootstrap"], _ingest_environ(plan), None),
        ready=None,
        after=("postgres", "nats"),
        once=True,
    )


def _api(plan: Plan) -> Part:
    return Part(
        name="api",
        group="api",
        title=f"Page and API on port {plan.api_port}",
        command=lambda: _python(
            plan,
            "api",
            "cncmon_api.main",
            [],
            {"CNCMON_API_DATABASE_DSN": plan.cluster.dsn, "CNCMON_API_PORT": str(plan.api_port)},
            None,
        ),
        ready=probes.http(plan.api_port),
        after=("bootstrap",),
        monitor_port=plan.api_port,
    )


def _ingest(plan: Plan) -> list[Part]:
    names = ["ingest"] if plan.workers == 1 else [f"ingest-{number}" for number in range(1, plan.workers + 1)]
    return [
        _service(
            plan,
            name,
            "ingest",
            "Ingest worker" if plan.workers == 1 else f"Ingest worker {number}",
            "cncmon_ingest.main",
            {},
            None,
            ("bootstrap",),
            ["run"],
        )
        for number, name in enumerate(names, 1)
    ]


def _ingest_environ(plan: Plan) -> dict[str, str]:
    return {"CNCMON_INGEST_DATABASE_DSN": plan.cluster.dsn}


def _agent(plan: Plan, edge: Edge) -> Part:
    folder = plan.agent_folder(edge)
    machines = [*plan.machines, *([plan.simulated_file] if plan.simulation else [])]
    environ = {
        "CNCMON_AGENT_SITE": edge.site,
        "CNCMON_AGENT_EDGE": edge.edge,
        "CNCMON_AGENT_MACHINES": ",".join(map(str, machines)),
        "CNCMON_AGENT_DATA_DIR": str(folder),
        "CNCMON_AGENT_ACCEPTED_LOG": str(plan.accepted_log or ""),
    }
    name = "agent" if len(plan.edges) == 1 else f"agent-{edge.site}-{edge.edge}"
    after = ("bootstrap", "simulator") if plan.simulation else ("bootstrap",)
    return _service(
        plan, name, "agent", f"Edge agent {edge.site}/{edge.edge}", "cncmon_agent.main", environ, folder, after
    )


def _service(
    plan: Plan,
    name: str,
    group: str,
    title: str,
    module: str,
    environ: dict[str, str],
    folder: Path | None,
    after: tuple[str, ...],
    arguments: Sequence[str] = (),
) -> Part:
    """Return one of our own services, which answers /readyz on a monitor port of its own."""
    port = ports.pick()[0]

    def command() -> Command:
        # What is known only once PostgreSQL runs is asked for at the start, not when the plan is made.
        late = _ingest_environ(plan) if group == "ingest" else {}
        monitor = {"CNCMON_SERVICE_MONITOR_PORT": str(port)}
        return _python(plan, name, module, list(arguments), {**environ, **late, **monitor}, folder)

    return Part(name, group, title, command, probes.http(port), after, monitor_port=port)


def _python(
    plan: Plan, name: str, module: str, arguments: list[str], environ: dict[str, str], folder: Path | None
) -> Command:
    folder = folder or plan.folder.run
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "CNCMON_NATS_SERVERS": plan.nats_url,
        "CNCMON_SERVICE_LOG_LEVEL": plan.log_level,
        "PYTHONUNBUFFERED": "1",
    }
    # -P: a stray .py file in the working folder must not take a library's place.
    return Command(name, [sys.executable, "-P", "-m", module, *arguments], common | environ, folder)
