"""Ingest: from JetStream to PostgreSQL, exactly once in effect.

Belongs here: consuming the stream, decoding, the one transaction per set of messages, migrations, the leader's
watermarks and stream care, dead letters. Does not belong here: reading data back for people (query-api), or anything an
edge decides.
"""
