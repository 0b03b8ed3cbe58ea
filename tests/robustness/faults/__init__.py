"""Breaks things: servers, connections, files and clocks, each fault by itself and undone when asked.

Belongs here: what injects. Knows nothing of samples, makes no traffic and judges nothing.
"""
