"""The log of the agent on a simulated disk, against a model so simple that it can't be wrong in the same way.

Only the calls of the operating system are replaced. No second log belongs here.
"""
