"""The embedded PostgreSQL: how a cluster is made, and what an earlier server may have left."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cncmon_standalone.embedded.postgres import Owner, PostgresCluster, shipped_programs
from cncmon_standalone.errors import PartError


@pytest.fixture
def cluster(reachable: Path) -> PostgresCluster:
    return PostgresCluster(reachable / "pg", 1)


def test_the_password_is_drawn_once_and_known_before_the_server_runs(cluster: PostgresCluster) -> None:
    cluster.draw_password()
    dsn = cluster.dsn
    cluster.draw_password()
    assert cluster.dsn == dsn
    assert len(dsn.split(":")[2].split("@")[0]) >= 32
    assert stat.S_IMODE((cluster.folder / "password").stat().st_mode) == 0o600


def test_a_cluster_is_made_once_and_belongs_to_an_unprivileged_user(cluster: PostgresCluster) -> None:
    data = cluster.folder / "data"
    (cluster.folder / "data.new").mkdir(parents=True)  # an initdb that was cut short
    (cluster.folder / "data.new" / "rubbish").touch()
    command = cluster.prepare()
    made = (data / "PG_VERSION").stat()
    assert made.st_uid != 0
    assert command.uid == (made.st_uid if os.geteuid() == 0 else None)
    assert not (data / "rubbish").exists()
    cluster.prepare()
    assert (data / "PG_VERSION").stat().st_mtime_ns == made.st_mtime_ns

    pid_file = data / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n/somewhere\n")  # of a server killed in an earlier boot; the pid is ours by now
    cluster.prepare()
    assert not pid_file.exists()
    with subprocess.Popen([sys.executable, "-c", NAMED_POSTGRES], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        pid_file.write_text(f"{server.pid}\n")
        cluster.prepare()
        assert pid_file.exists()
        server.kill()


NAMED_POSTGRES = """
import time
from pathlib import Path
Path("/proc/self/comm").write_text("postgres")
print(flush=True)
time.sleep(60)
"""


def test_a_folder_that_postgresql_cannot_enter_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    if os.geteuid() != 0:  # a normal user's PostgreSQL can enter what the user can
        monkeypatch.setattr(Owner, "can_enter", lambda _self, _folder: False)
    with pytest.raises(PartError, match=r"who can't enter .*--data /var/lib/cncmon"):
        PostgresCluster(closed / "pg", 1).prepare()


def test_a_cluster_keeps_its_owner_when_a_better_user_appears(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = reachable / "data"
    data.mkdir()
    if os.geteuid() == 0:
        os.chown(data, 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Owner.of(data).uid == data.stat().st_uid
    assert Owner.of(reachable / "none") == Owner.find()


@pytest.mark.needs("root")
def test_programs_that_the_owner_cannot_reach_are_copied_with_their_libraries(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's home is closed to the user whom PostgreSQL runs as; the copy must run without the wheel."""
    shipped, can_reach = shipped_programs(), Owner.can_reach
    monkeypatch.setattr(
        Owner, "can_reach", lambda self, path: not path.is_relative_to(shipped) and can_reach(self, path)
    )
    command = cluster.prepare()
    program = Path(command.argv[0])
    assert program.is_relative_to(cluster.folder)
    found = subprocess.run(["ldd", program.with_name("initdb")], capture_output=True, text=True, check=True).stdout
    assert "not found" not in found
    libraries = [Path(line.split("=>")[1].split()[0]) for line in found.splitlines() if "libpq" in line]
    assert libraries
    assert all(library.resolve().is_relative_to(cluster.folder.resolve()) for library in libraries)
