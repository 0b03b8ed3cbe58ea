"""The Kubernetes side of configuration: what Machine, MachineProfile and EdgeNode are there.

What belongs here: whatever speaks to the Kubernetes API, or is written for it. The documents themselves and their rules
are `cncmon_core.machine`'s, for files and clusters alike.
"""
