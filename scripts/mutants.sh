#!/bin/sh
# Runs the tests of the tests, an hour or two; see `make mutants ARGS=--help`.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec .venv/bin/python -m mutants "$@"
