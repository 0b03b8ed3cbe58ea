#!/bin/sh
# Runs one npm script of the web page with the Node.js that built it.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:$(pwd)/.venv/bin"
export PATH
cd services/query-api/web
npm run --silent "$@"
