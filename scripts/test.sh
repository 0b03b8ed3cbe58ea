#!/bin/sh
# Runs the tests: with arguments, what they name; without, everything, the page's own tests included, but for those on
# Kubernetes (`make test-cluster`) and the rounds that break a running plant (`make faults`, `make robustness`).
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
if [ $# -eq 0 ]; then
    scripts/web.sh test
    set -- --ignore=tests/cluster --ignore=tests/robustness/scenarios
fi
# Most of a test is waiting for servers, so more at once than there are cores; what shares a server stays together, and
# what takes long begins first (tests/testkit/durations.py).
exec .venv/bin/pytest -n "${CNCMON_TEST_WORKERS:-4}" --dist loadfile --no-loadscope-reorder "$@"
