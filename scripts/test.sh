#!/bin/sh
# Runs the tests: with arguments, what they name; without, everything, the page's own tests included.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
if [ $# -eq 0 ]; then
    scripts/web.sh test
fi
# Most of a test is waiting for servers, so two at once; what shares a server stays together.
exec .venv/bin/pytest -n "${CNCMON_TEST_WORKERS:-2}" --dist loadfile "$@"
