"""Running parts side by side: start in order, restart what dies, stop in order.

Knows processes and probes, not what the parts do; that is in `cncmon_standalone.system`.
"""
