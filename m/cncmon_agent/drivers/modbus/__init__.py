"""Modbus TCP: which registers to ask for in the fewest requests, and what their bits mean."""
