"""Makes the CustomResourceDefinitions and the admission policy from the document structs.

What belongs here: the way from `cncmon_core.machine` to what an API server understands. `schema` translates types,
`rules` says in CEL what `cncmon_core.machine_rules` says in Python, `definitions` and `admission` put it together.
"""
