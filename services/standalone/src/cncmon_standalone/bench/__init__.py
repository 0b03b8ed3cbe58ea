"""How fast the cloud side is on this machine, beside what its database and stream can take at all.

Belongs here: made-up traffic as agents send it, the limits, and the measuring of workers that drain a stream.
"""
