"""Real servers as context managers: start, wait until they answer, kill -9 and restart at will, stop."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil

from cncmon_standalone.embedded import nats, postgres
from cncmon_standalone.embedded.process import Command, die_with_parent
from testkit.ports import free_port
from testkit.waiting import WAIT_S_MAX


class Server:
    """One running server process that a test may kill and start again on the same data and port."""

    def __init__(self, command: Command, port: int, log: Path) -> None:
        self.command = command
        self.port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        command = self.command
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env=os.environ | dict(command.environ),
                user=command.uid,
                group=command.gid,
                extra_groups=None if command.uid is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + WAIT_S_MAX
        while time.monotonic() < deadline:
            if self._process and self._process.poll() is not None:
                # PostgreSQL after kill -9 waits for the dead server's children: start again, as a supervisor would.
                time.sleep(0.2)
                return self.start()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return None
            time.sleep(0.02)
        raise TimeoutError(f"{self.command.name} does not listen on {self.port}: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9 the server and what it forked."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self.resume()  # a paused one would not hear it
        self._process.send_signal(self.command.stop_signal)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def pause(self) -> None:
        """Freeze the server and every process of it: it is there, and does not answer."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        # PostgreSQL's backends lead process groups of their own.
        assert self._process is not None
        parent = psutil.Process(self._process.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextlib.contextmanager
def running_nats(folder: Path, **settings: Any) -> Iterator[Server]:
    port = free_port()
    server = Server(nats.command(folder / "nats", port, **settings), port, folder / "nats.log")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def running_nats_cluster(folder: Path, servers: int = 3) -> Iterator[list[Server]]:
    """Run nats-servers that keep their streams together, each of which may be killed and started again."""
    routes = [free_port() for _ in range(servers)]
    made = []
    with contextlib.ExitStack() as stack:
        for number, route in enumerate(routes):
            port = free_port()
            command = nats.command(folder / f"nats-{number}", port)
            config = Path(command.argv[-1])
            others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes)
            config.write_text(
                config.read_text().replace("server_name: cncmon", f"server_name: cncmon-{number}")
                + f'cluster {{ name: cncmon, listen: "127.0.0.1:{route}", routes: [{others}] }}\n'
            )
            server = Server(command, port, folder / f"nats-{number}.log")
            server.start()
            stack.callback(server.stop)
            made.append(server)
        yield made


class Postgres(Server):
    """A PostgreSQL server; `dsn` is its maintenance database's URL."""

    def __init__(self, cluster: postgres.PostgresCluster, log: Path) -> None:
        super().__init__(cluster.prepare(), cluster.port, log)
        self.folder = cluster.folder
        self.dsn = cluster.dsn.rsplit("/", 1)[0] + "/postgres"

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def back_up(self) -> Path:
        """Stop the server, copy its disk, and start it again; return the copy."""
        copy = self.folder / "backup"
        self.stop()
        self._copy(self.data, copy)
        self.start()
        return copy

    def restore(self, backup: Path) -> None:
        """Put a copy of the disk in the place of the disk, and start the server on it; it must not run."""
        shutil.rmtree(self.data)
        self._copy(backup, self.data)
        self.start()

    def _copy(self, source: Path, target: Path) -> None:
        # With owners, which Python's copytree leaves out.
        subprocess.run(["cp", "-a", str(source), str(target)], check=True)

    def _wait(self) -> None:
        super()._wait()
        deadline = time.monotonic() + WAIT_S_MAX
        while True:
            try:
                asyncio.run(self._ask())
            except (OSError, asyncpg.PostgresError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    async def _ask(self) -> None:
        connection = await asyncpg.connect(self.dsn, timeout=5)
        await connection.close()


@contextlib.asynccontextmanager
async def running_replica(primary: Postgres) -> AsyncIterator["Replica"]:
    """Run a streaming replica of a server that runs."""
    with tempfile.TemporaryDirectory(prefix="cncmon-replica-") as name:
        folder = Path(name)
        shutil.chown(folder, *_owner_of(primary.data))
        replica = await asyncio.to_thread(Replica, primary, folder)
        await asyncio.to_thread(replica.start)
        try:
            yield replica
        finally:
            await asyncio.to_thread(replica.stop)


def _owner_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


class Replica(Postgres):
    """A streaming replica; `cut_off` it, `promote` it."""

    def __init__(self, primary: Postgres, folder: Path) -> None:
        target = urlsplit(primary.dsn)
        programs = Path(primary.command.argv[0]).parent
        uid, gid = _owner_of(primary.data) if os.geteuid() == 0 else (None, None)
        subprocess.run(
            [
                *(str(programs / "pg_basebackup"), "-D", str(folder / "data"), "-X", "stream", "-c", "fast"),
                *("-h", "127.0.0.1", "-p", str(target.port), "-U", str(target.username)),
            ],
            env={"PGPASSWORD": str(target.password), "PATH": os.environ["PATH"]},
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            check=True,
            capture_output=True,
            cwd="/",
        )
        (folder / "data" / "standby.signal").touch()
        shutil.copy(primary.folder / "password", folder)
        link = f"host=127.0.0.1 port={target.port} user={target.username} password={target.password}"
        cluster = postgres.PostgresCluster(folder, free_port(), {"primary_conninfo": f"'{link}'"}, programs)
        super().__init__(cluster, folder / "postgres.log")

    async def caught_up(self, primary: Postgres) -> None:
        """Wait until it has all that the primary has now."""
        theirs = await asyncpg.connect(primary.dsn)
        ours = await asyncpg.connect(self.dsn)
        wanted = await theirs.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        async with asyncio.timeout(WAIT_S_MAX):
            while not await ours.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", wanted):
                await asyncio.sleep(0.02)
        await theirs.close()
        await ours.close()

    async def cut_off(self) -> None:
        """Receive nothing of the primary any more."""
        ours = await asyncpg.connect(self.dsn)
        await ours.execute("ALTER SYSTEM SET primary_conninfo = ''")
        await ours.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(WAIT_S_MAX):
            while await ours.fetchval("SELECT count(*) FROM pg_stat_wal_receiver"):
                await asyncio.sleep(0.02)
        await ours.close()

    async def promote(self) -> None:
        """Take over as primary."""
        ours = await asyncpg.connect(self.dsn)
        assert await ours.fetchval("SELECT pg_promote(true, 30)")
        await ours.close()


@contextlib.contextmanager
def running_postgres(
    settings: dict[str, str] | None = None, programs: Path | None = None, disk: Path | None = None
) -> Iterator[Postgres]:
    """Run a PostgreSQL of its own. disk: the folder that its data go into; a fresh one otherwise."""
    # Not pytest's folder: that one is closed to the user whom PostgreSQL runs as under root.
    with tempfile.TemporaryDirectory(prefix="cncmon-pg-", dir=disk) as name:
        folder = Path(name)
        folder.chmod(0o755)
        cluster = postgres.PostgresCluster(folder / "pg", free_port(), settings, programs)
        server = Postgres(cluster, folder / "postgres.log")
        server.start()
        try:
            yield server
        finally:
            server.stop()
