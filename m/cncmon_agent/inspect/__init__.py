"""`cncmon-agent buffer`: what is on an edge's disk, whether it is undamaged, and a copy of it to carry away.

What belongs here: reading. Nothing here writes into a data folder or takes its lock, so that all of it works beside a
running agent, on a copied folder, and on a card in another computer. The agent itself imports nothing from here.
"""
