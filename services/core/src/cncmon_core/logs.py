"""JSON logs on standard error, one object a line, for our own code and for every library's logger."""

import logging
import reprlib
import sys
from typing import Any

import msgspec
import structlog

_short = reprlib.Repr(maxlevel=4, maxstring=2000, maxother=2000).repr
"""A repr that is bounded in length and depth, and that survives an object whose own `__repr__` fails."""

_encode = msgspec.json.Encoder(enc_hook=_short).encode


def _line(event: dict[str, Any], **_: Any) -> str:
    """Return the JSON line of an event; a value that JSON has no form for (a loop, a lone surrogate) as its repr."""
    try:
        return _encode(event).decode()
    except (TypeError, ValueError, RecursionError):
        return _encode({str(name): _plain(value) for name, value in event.items()}).decode()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value if value is None or isinstance(value, (bool, int, float)) else _short(value)


def setup(service: str, level: str = "info") -> None:
    """Send structlog and the standard library's logging to standard error as JSON lines."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        lambda _logger, _name, event: {"service": service, **event},
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_line),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their errors reach us as exceptions and are told in our own words; their logs would tell them again, per poll.
    for library in ("nats", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger named after a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger
