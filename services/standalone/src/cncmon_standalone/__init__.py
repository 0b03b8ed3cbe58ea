"""The `cncmon` command: the whole system on one machine, without Kubernetes.

Belongs here: running the other services' programs side by side with an embedded NATS and PostgreSQL, asking them how
they are, and the proofs that compare what was accepted with what is stored. Does not belong here: anything that a
cluster installation needs too; that is in the service it concerns.
"""
