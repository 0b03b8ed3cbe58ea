#!/bin/sh
# Runs the tests: with arguments, what they name; without, everything, the page's own tests included.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
if [ $# -eq 0 ]; then
    scripts/web.sh test
fi
exec .venv/bin/pytest "$@"
