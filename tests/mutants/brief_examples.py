"""A plugin of the pytest that a mutant's test runs in: a failing example is reported as it was found.

Hypothesis makes it smaller for up to five minutes, which a person may wait for and the run of all mutants need not.
"""

from hypothesis.internal.conjecture import engine

engine.MAX_SHRINKING_SECONDS = 5
