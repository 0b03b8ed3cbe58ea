import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cncmon_core import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Set logging up for a service; the call returns what was logged since, each line parsed as JSON."""
    root = logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    libraries = {name: logging.getLogger(name).level for name in ("nats", "asyncio")}
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.setup("agent", "info")

    def read() -> list[dict[str, Any]]:
        said = stream.getvalue()
        stream.truncate(0)
        stream.seek(0)
        return [json.loads(line) for line in said.split("\n")[:-1]]

    yield read
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configuration)
    for name, before in libraries.items():
        logging.getLogger(name).setLevel(before)


def test_a_line_says_when_who_what(lines: Lines) -> None:
    before = datetime.now(UTC)
    logs.get("cncmon_agent.poller").warning("machine offline", machine="cnc-001", tries=3)
    (line,) = lines()
    assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
    assert line == {
        "service": "agent",
        "logger": "cncmon_agent.poller",
        "level": "warning",
        "event": "machine offline",
        "machine": "cnc-001",
        "tries": 3,
    }


def test_levels(lines: Lines) -> None:
    logs.get("a").debug("not told")
    logging.getLogger("b").debug("not told")
    logs.get("a").info("told")
    assert [line["event"] for line in lines()] == ["told"]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("-inf"),
        b"\xff\0",
        {(1, 2): {3}},
        {1: "a", None: "b"},
        "\ud800 lone",
        "line\nbreak\0",
        10**400,
        LOOP,
        Unprintable(),
        object,
        datetime(2026, 1, 1),  # noqa: DTZ001 a naive one is the case
        ValueError("x"),
        [Unprintable(), "\udcff"],
        {"\ud800": 1},
        "x" * 100_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_one_line_of_json(lines: Lines, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    # pytest's own handler would call str() on what can't be printed.
    root = logging.getLogger()
    ours = [h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter)]
    monkeypatch.setattr(root, "handlers", ours)
    logs.get("a").info("odd", value=value)
    (line,) = lines()
    assert line["event"] == "odd"
    assert "value" in line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_is_one_line_of_json(lines: Lines, event: str, value: str) -> None:
    logs.get("a").info(event, value=value)
    (line,) = lines()
    if not any("\ud800" <= character <= "\udfff" for character in event + value):
        assert (line["event"], line["value"]) == (event, value)


def test_an_event_with_a_lone_surrogate_is_told(lines: Lines) -> None:
    logs.get("a").info("file \udcff.yaml")
    assert [line["event"] for line in lines()] == ["file \\udcff.yaml"]


def test_percent_signs_are_left_alone_without_arguments(lines: Lines) -> None:
    logs.get("a").info("100 % sure")
    logs.get("a").info("%d of %d", 1, 2)
    assert [line["event"] for line in lines()] == ["100 % sure", "1 of 2"]


def test_foreign_loggers_are_json_too(lines: Lines) -> None:
    logging.getLogger("some.library").warning("careful: %s", "hot")
    (line,) = lines()
    assert (line["logger"], line["level"], line["event"]) == ("some.library", "warning", "careful: hot")
    assert line["service"] == "agent"


def test_exceptions_have_their_traceback_in_the_line(lines: Lines) -> None:
    try:
        raise ZeroDivisionError("by nought")
    except ZeroDivisionError:
        logs.get("a").exception("ours")
        logging.getLogger("b").exception("theirs")
    for line in lines():
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("ZeroDivisionError: by nought")


def test_libraries_that_tell_everything_twice_are_quiet(lines: Lines) -> None:
    for name in ("nats.aio.client", "asyncio"):
        logging.getLogger(name).error("again and again")
    assert lines() == []
