"""What every service shares: the wire format, the data model, and how a service connects, logs and reports health.

Belongs here: names and bytes that two services must agree on (`names`, `frames`, `sample`, `identity`, `events`,
`watermark`, `machine`), and the plumbing that must behave alike everywhere (`settings`, `logs`, `monitor`, `nats_link`,
`service`).

Does not belong here: anything that only one service needs; any database, web framework, Kubernetes or controller
protocol. The edge agent on a Raspberry Pi carries this package whole, so a new dependency needs a reason.
"""

__version__ = "0.1.0"
