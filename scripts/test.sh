#!/bin/sh
# Runs the tests: with arguments, what they name; without, everything, the page's own tests included.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
if [ $# -eq 0 ]; then
    scripts/web.sh test
fi
# Most of a test is waiting for servers, so three at once on two cores; what shares a server stays together.
exec .venv/bin/pytest -n "${CNCMON_TEST_WORKERS:-3}" --dist loadfile "$@"
