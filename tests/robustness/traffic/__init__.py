"""Makes samples: machines that really answer, agents that really read them, outages at an accelerated clock.

Belongs here: simulated machines, agents and ingest as processes, the generator of recorded samples. Injects no faults
and judges nothing; every poll that is answered and every batch that is accepted is written down by those who do it.
"""
