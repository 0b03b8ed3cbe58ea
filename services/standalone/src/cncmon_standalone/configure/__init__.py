"""The machines of the edges: from Machine files into each edge's one document in KV `edge_config`, and what came of it.

Belongs here: what changes (`change`), reading and writing the documents (`documents`), waiting for the edges
(`rollout`), and the commands (`commands`).

Does not belong here: what a document may hold (`cncmon_core.edge_config`) and how an agent applies it.
"""
