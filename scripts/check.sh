#!/bin/sh
# Lints what changed against main and runs the tests that are nearest to it; see `tests/testkit/check.py`.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec .venv/bin/python -m testkit.check "$@"
