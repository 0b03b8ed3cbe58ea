"""What tests stand on: real servers for a session, fresh databases and streams for a test, parts that are required."""
