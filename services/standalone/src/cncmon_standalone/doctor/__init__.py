"""`cncmon doctor`: is everything as it should be, and if not, what to do. In the manner of `linkerd check`."""
