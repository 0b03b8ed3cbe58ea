#!/bin/sh
# Runs the tests on Kubernetes: those of its API on the cluster of KUBECONFIG or on a control plane of our own, and as
# root those that need a node on a node of our own. What they are made of is made the first time.
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh dev
[ "$(id -u)" != 0 ] || scripts/setup-cluster.sh node >/dev/null
[ "$(id -u)" = 0 ] || [ -n "${KUBECONFIG:-}" ] || scripts/setup-cluster.sh >/dev/null
if [ $# -gt 0 ]; then
    exec .venv/bin/pytest tests/cluster "$@"
fi
.venv/bin/pytest -n "${CNCMON_TEST_WORKERS:-2}" --dist loadfile tests/cluster --ignore tests/cluster/node
# One node a machine, and all of the machine for it.
exec .venv/bin/pytest tests/cluster/node
