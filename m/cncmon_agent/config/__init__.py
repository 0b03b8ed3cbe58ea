"""Which machines this edge reads: from KV `edge_config` while it runs, from disk when it starts, or from fixed files.

Belongs here: following the document, judging it, keeping the last good one, and saying what is in force.

Does not belong here: what a document looks like (`cncmon_core.edge_config`) and how machines are run (`machines`).
"""
