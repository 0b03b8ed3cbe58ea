#!/bin/sh
# Runs the benchmarks; see `make bench ARGS=--help`.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh run
exec .venv/bin/python -m bench "$@"
