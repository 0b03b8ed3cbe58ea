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
# One node a machine. Its tests wait for pods most of the time, so those of the API run beside them.
said=$(mktemp)
.venv/bin/pytest tests/cluster/node >"$said" 2>&1 &
node=$!
trap 'kill "$node" 2>/dev/null || :; rm -f "$said"' EXIT
trap 'exit 130' INT TERM
status=0
.venv/bin/pytest -n "${CNCMON_TEST_WORKERS:-3}" --dist loadfile --no-loadscope-reorder tests/cluster \
    --ignore tests/cluster/node || status=$?
wait "$node" || status=$?
cat "$said"
exit "$status"
