"""The proof that every accepted sample is in the database exactly once, as the machine gave it.

Trusts neither agent nor ingest: what the simulated machines answered is in the simulator's poll log, what the agent
took on is in its accepted log, and both are compared with the table, field by field.
"""
