"""Bytes that decoders are fuzzed from. Each file is small and named for what it is."""
