"""Models: the log of the agent on a simulated disk, and the delivery rules on real servers, in any order of steps.

Of the log only the calls of the operating system are replaced, and its model is so simple that it can't be wrong in the
same way. Of delivery only that disk is: `edge` drives the agent's parts, `cloud` ingest's, nats-server and PostgreSQL,
and `promises` judges. No second implementation belongs here.
"""
