"""The edge agent: reads machine controllers, keeps what it read, and ships it to NATS JetStream.

Belongs here: drivers, the buffer, publishing with resends on evidence, the agent's configuration. Runs on a Raspberry
Pi for years, so every import counts: no database client, no web framework, and a driver's library is imported by that
driver alone.
"""
