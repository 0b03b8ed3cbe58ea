"""`cncmon demo`: simulated machines on the real system, and with --for the proof that nothing was lost or doubled."""
