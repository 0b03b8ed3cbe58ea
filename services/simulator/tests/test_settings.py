import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cncmon_core.errors import SettingsError
from cncmon_core.settings import describe
from cncmon_simulator import Settings, poll_log, running
from cncmon_simulator.errors import PollLogError
from cncmon_simulator.faults import KINDS
from cncmon_simulator.settings import SECTION, check
from testkit.waiting import WAIT_S_MAX


def start(**values: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CNCMON_")}
    environ |= {f"CNCMON_SIMULATOR_{name.upper()}": value for name, value in values.items()}
    command = [sys.executable, "-m", "cncmon_simulator.main"]
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)


def test_a_port_in_use_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(port_base=str(port), machines="1", control_port="-1")
        _, said = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 2
    assert f"port {port} of 127.0.0.1, meant for machine mill-01, is in use" in said
    assert "CNCMON_SIMULATOR_PORT_BASE" in said
    assert "Traceback" not in said


def test_a_second_port_in_use_frees_the_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(port_base=str(port - 1), machines="2", control_port="-1")
        _, said = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 2
    assert "lathe-02, is in use" in said or "mill-01, is in use" in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"machines": 248, "addressing": "unit_ids"}, "247 unit ids"),
        ({"machines": 100, "port_base": 65500}, "use at most 65436"),
        ({"site": "North Plant"}, "CNCMON_SIMULATOR_SITE: site 'North Plant': use a-z"),
        ({"edge": "a.b"}, "CNCMON_SIMULATOR_EDGE"),
        ({"name_prefix": "CNC_"}, "CNCMON_SIMULATOR_NAME_PREFIX"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(settings, values: dict, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        check(settings(**values))
    assert said in str(error.value)


@pytest.mark.parametrize("field", ["poll_log", "machines_file"])
async def test_a_file_that_can_not_be_written_is_named(settings, tmp_path: Path, field: str) -> None:
    with pytest.raises(SettingsError, match=f"CNCMON_SIMULATOR_{field.upper()}: can't be written"):
        async with running(settings(**{field: str(tmp_path / "missing" / "file")})):
            pass


async def test_a_poll_log_that_fails_ends_the_service(settings, connected) -> None:
    ended = asyncio.Event()

    async def serve() -> None:
        async with running(settings(poll_log="/dev/full")) as simulator:
            async with connected(simulator, "cnc-001") as client:
                await client.read_holding_registers(100, count=39)
            try:
                await asyncio.wait_for(simulator.until(asyncio.Event()), WAIT_S_MAX)
            except OSError:
                ended.set()
                raise

    with pytest.raises(OSError, match="No space left"):
        await serve()
    assert ended.is_set()


def test_the_log_reader_names_a_bad_line(tmp_path: Path) -> None:
    log = tmp_path / "polls.jsonl"
    good = '{"machine_id":"a","counter":1,"t_ns":5,"values":{"x":1.5,"y":null}}\n'
    log.write_text(good + good[:-10])
    assert [r.values for r in poll_log.read(log)] == [{"x": 1.5, "y": None}]
    log.write_text(good + "nonsense\n")
    with pytest.raises(PollLogError, match=r"polls\.jsonl:2: "):
        list(poll_log.read(log))


def test_the_readme_names_every_setting_and_fault() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for variable, default, text in describe(Settings, SECTION):
        assert f"| `{variable}` | {f'`{default}`' if default else ''} | {text} |" in readme
    for kind in KINDS:
        assert f"| `{kind}` |" in readme
