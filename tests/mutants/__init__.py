"""Small wrong changes to the code, kept as data, each with the test that must fail on it (`make mutants`).

The data are the `*.toml` files beside this one; README.md describes the format. No test belongs here, and nothing
that a test of the product needs.
"""
