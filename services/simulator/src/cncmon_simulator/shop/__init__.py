"""The behaviour `shop`: a job shop's day, so that state timelines, OEE and tool life mean something.

`kinds` says what mills, lathes and the others are like, `work` which programs one machine has, `paths` where the tool
goes, `plan` what happens when (a discrete-event plan, drawn from the seed), `story` which values follow from it.
"""

from cncmon_simulator.shop.kinds import kind_of
from cncmon_simulator.shop.story import Shop

__all__ = ["Shop", "kind_of"]
