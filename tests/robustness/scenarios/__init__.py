"""The faults of docs/robustness.md on the running system: real machines, agents, NATS, ingest, PostgreSQL.

Belongs here: which fault hits when, and what must be true afterwards. A scenario knows settings, logs and the database,
never the inside of a service, so that it says the same whatever the agent becomes.
"""
