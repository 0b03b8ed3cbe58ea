#!/bin/sh
# Makes .venv with every service in it, and builds the web page. `setup.sh run` installs what running needs;
# `setup.sh dev` adds the tools that `make test` and `make lint` use. Does nothing where nothing has changed.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}
python_min="3.12"

say() { printf '\033[1m>\033[0m %s\n' "$*" >&2; }

find_python() {
    for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12 python3 "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
        [ -n "$candidate" ] || continue
        # A pyenv shim may be on PATH and still fail, so ask it.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    cat >&2 <<TXT
CNC Monitor needs Python >= $python_min with its venv module, and found none on PATH or in ~/.pyenv/versions.
What to do:
  Debian 13, Ubuntu 24.04 or newer:   sudo apt install python3 python3-venv
  elsewhere:                          pyenv install 3.13
  or name one:                        make setup PYTHON=/path/to/python3.13
TXT
    exit 1
}

rows=services/ingest/src/cncmon_ingest/_rows

# A compiler that came or went counts: with it, ingest is built otherwise.
stamp_of() {
    { cat "$@" services/*/pyproject.toml services/ingest/setup.py "$rows.c" scripts/setup.sh; command -v cc gcc || true; } |
        cksum | tr ' ' '-'
}

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    say "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi
if [ ! -x .venv/bin/uv ] || [ "$(cat .venv/build.stamp 2>/dev/null)" != "$(stamp_of requirements/build.txt)" ]; then
    say "Installing the installer"
    .venv/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/build.txt
    stamp_of requirements/build.txt >.venv/build.stamp
fi

install() { # name of the requirements file
    stamp=$(stamp_of "requirements/$1.txt")
    [ "$(cat ".venv/$1.stamp" 2>/dev/null)" = "$stamp" ] && return
    say "Installing $(grep -c '^[a-zA-Z]' "requirements/$1.txt") pinned packages ($1)"
    UV_LINK_MODE=${UV_LINK_MODE:-copy} .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r "requirements/$1.txt"
    say "Installing the services"
    # Building it may fail, and then what an earlier source gave must not stay.
    rm -f "$rows".*so
    .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation \
        $(for service in services/*/pyproject.toml; do echo "-e $(dirname "$service")"; done)
    ls "$rows".*so >/dev/null 2>&1 ||
        say "No C compiler: ingest packs rows in Python, about half as fast. Debian: apt install gcc python3-dev"
    # The benchmarks and the tests' own tools are imported from where they lie.
    pwd | sed 's#$#/tests#' >"$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/cncmon_tests.pth"
    echo "$stamp" >".venv/$1.stamp"
}

install run
scripts/build-web.sh
if [ "$what" = dev ]; then
    install dev
    scripts/setup-browser.sh
    scripts/setup-timescaledb.sh
fi
