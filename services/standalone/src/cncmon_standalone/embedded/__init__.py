"""How to start the servers that come as PyPI wheels: nats-server and PostgreSQL. Nothing here supervises a process."""
