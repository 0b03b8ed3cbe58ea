#!/bin/sh
# Writes what is made from the code and kept beside it: the resources' definitions. A test fails where they differ.
set -eu
cd "$(dirname "$0")/.."
exec .venv/bin/python -m cncmon_operator.crds charts/cnc-monitor/files
