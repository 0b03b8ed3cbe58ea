"""Delivery under faults. traffic: what is produced and recorded; faults: what goes wrong; model: the log against a
simulated disk; validate: recorded history against what was stored; scenarios: these together on the running system.
"""
