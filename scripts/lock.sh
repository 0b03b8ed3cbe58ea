#!/bin/sh
# Pins every dependency with its hashes: one file per service (its image installs that), one for running all of them
# from a checkout, one for working on them. Run it after changing a pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}

lock() { # output file, sources...
    out=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-header --no-annotate \
        $(for n in core agent api ingest operator simulator standalone; do echo "--no-emit-package cncmon-$n"; done) \
        --output-file "requirements/$out" "$@"
}

for service in agent ingest operator query-api simulator; do
    lock "$service.txt" "services/$service/pyproject.toml"
done
lock build.txt --group build
lock node.txt --group node
lock go.txt --group go
lock run.txt services/standalone/pyproject.toml --constraints requirements/build.txt
lock dev.txt services/standalone/pyproject.toml services/operator/pyproject.toml --group dev --constraints requirements/run.txt
