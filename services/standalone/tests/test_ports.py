import os
import socket

import pytest

from cncmon_standalone import ports
from cncmon_standalone.errors import InUseError
from cncmon_standalone.ports import WantedPort


def test_a_port_in_use_is_named_with_its_program_and_the_option_that_changes_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InUseError) as caught:
            ports.check([WantedPort(port, "the page and the API", "--api-port")])
    said = str(caught.value)
    assert f"port {port} (for the page and the API) is in use by " in said
    assert f"pid {os.getpid()}" in said
    assert "choose another with --api-port N" in said


def test_a_listener_on_every_address_counts_too() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        assert ports.why_not(taken.getsockname()[1]) is not None


def test_all_ports_that_are_taken_are_named_at_once() -> None:
    with socket.socket() as one, socket.socket() as two:
        wanted = []
        for number, taken in enumerate((one, two)):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            wanted.append(WantedPort(taken.getsockname()[1], f"purpose {number}", f"--option-{number}"))
        with pytest.raises(InUseError) as caught:
            ports.check(wanted)
    assert str(caught.value).count("\n") == 1


def test_one_port_for_two_parts_is_refused() -> None:
    port = ports.pick()[0]
    with pytest.raises(InUseError, match=f"--a and --b both say {port}"):
        ports.check([WantedPort(port, "a", "--a"), WantedPort(port, "b", "--b")])


def test_an_earlier_connection_that_lingers_is_no_obstacle() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()  # the side that closes first keeps the port in TIME_WAIT
        client.close()
    assert ports.why_not(port) is None


def test_picked_ports_are_in_a_row_and_below_the_kernels_own_range() -> None:
    row = ports.pick(50)
    assert row == list(range(row[0], row[0] + 50))
    assert row[-1] < 30_000
