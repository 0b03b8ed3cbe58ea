#!/bin/sh
# Runs the long round of the robustness tests, an hour or so; see `make robustness ARGS=--help`.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec .venv/bin/python -m robustness "$@"
