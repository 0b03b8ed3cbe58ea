#!/bin/sh
# Runs the tests on a real Kubernetes API: that of KUBECONFIG, or a control plane of our own, made the first time.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
[ -n "${KUBECONFIG:-}" ] || scripts/setup-cluster.sh >/dev/null
exec .venv/bin/pytest -n "${CNCMON_TEST_WORKERS:-2}" --dist loadfile tests/cluster "$@"
