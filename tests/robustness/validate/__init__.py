"""Compares the recorded history with the table: lost, duplicated, altered, gaps, dead letters, times to recover.

Belongs here: what reads logs and tables and judges. Trusts neither agent nor ingest: what was said is in the poll logs
of the simulated machines, what was promised in the agents' accepted logs, which survive a kill -9. Injects nothing.
"""
