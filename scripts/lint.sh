#!/bin/sh
# Every check that reads the code without running it. All of them run, then the status says whether one failed.
cd "$(dirname "$0")/.." || exit 1
status=0
check() {
    printf '\033[1m> %s\033[0m\n' "$*"
    "$@" || status=1
}
check .venv/bin/ruff check .
check .venv/bin/ruff format --check .
check .venv/bin/mypy services/*/src tests
check .venv/bin/lint-imports --no-cache
check scripts/web.sh lint
exit $status
