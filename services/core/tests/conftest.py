"""How hypothesis runs here: no deadline, since other work shares the processors."""

from hypothesis import HealthCheck, settings

settings.register_profile("cncmon", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
settings.load_profile("cncmon")
