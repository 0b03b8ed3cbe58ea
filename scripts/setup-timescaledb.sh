#!/bin/sh
# Builds the Apache edition of TimescaleDB for Debian 12's PostgreSQL 15 from Debian 13's source package: Debian 12 has
# no package of it, and Debian 13's are linked against newer libraries. Does nothing where the extension is there
# already. Where it can't be done, says why in one line and ends well: the tests that need it name themselves as skipped.
set -eu
server=/usr/lib/postgresql/15
extension=/usr/share/postgresql/15/extension
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

say() { printf '> %s\n' "$*" >&2; }
cannot() {
    say "The tests on TimescaleDB will be skipped: $*"
    exit 0
}

[ ! -e "$extension/timescaledb.control" ] || exit 0
[ "$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}")" = "debian 12" ] ||
    cannot "its set-up knows Debian 12 only"
command -v apt-get >/dev/null 2>&1 || cannot "there is no apt-get"
[ "$(id -u)" = 0 ] || cannot "its set-up needs root (sudo scripts/setup-timescaledb.sh)"

folder=$(mktemp -d)
cluster_conf=/etc/postgresql-common/createcluster.conf
clean() {
    if [ -e "$folder/createcluster.conf" ]; then cp "$folder/createcluster.conf" "$cluster_conf"; fi
    rm -rf "$folder"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$folder" # apt downloads as a user of its own
log=$folder/log
because() { cannot "$1 ($(grep -E '^E:|[Ee]rror' "$log" | tail -n 1))"; }

install_packages() {
    # --no-upgrade: a PostgreSQL that runs here is not restarted for the sake of tests.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-upgrade \
        -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 || because "Debian packages could not be installed"
}

say "Installing PostgreSQL 15 and a compiler for the tests on TimescaleDB"
apt-get update -qq >"$log" 2>&1 || : # a source that is away may be none that we need; if it is, the next step says so
install_packages postgresql-common build-essential cmake debian-archive-keyring libkrb5-dev libssl-dev
if [ ! -x "$server/bin/postgres" ]; then
    # The package would make a cluster and start it; the tests make their own.
    cp -p "$cluster_conf" "$folder/createcluster.conf"
    echo "create_main_cluster = false" >>"$cluster_conf"
fi
install_packages postgresql-15 postgresql-server-dev-15

say "Fetching the source of TimescaleDB"
# The mirror that this machine takes Debian from, whatever the format of its sources; proxies are apt's own settings.
mirror=$(apt-get indextargets --format '$(REPO_URI)' \
    'Created-By: Packages' 'Origin: Debian' 'Codename: bookworm' 'Component: main' | head -n 1)
[ -n "$mirror" ] || cannot "apt knows no mirror of Debian 12"
echo "deb-src [signed-by=$keyring] $mirror trixie main" >"$folder/trixie.list"
mkdir "$folder/lists" "$folder/source"
# With its own list of sources and its own state: the machine's sources stay as they are.
trixie() {
    (cd "$folder/source" && apt-get -qq -o Dir::Etc::SourceList="$folder/trixie.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$folder/lists" -o APT::Update::Error-Mode=any "$@" >"$log" 2>&1)
}
trixie update || because "the mirror's Debian 13 can't be read"
trixie source timescaledb || because "the source package can't be had"

say "Building it"
cmake -S "$folder"/source/timescaledb-*/ -B "$folder/build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DAPACHE_ONLY=1 \
    -DREGRESS_CHECKS=OFF -DWARNINGS_AS_ERRORS=OFF -DUSE_TELEMETRY=OFF -DPG_CONFIG="$server/bin/pg_config" \
    >"$log" 2>&1 || because "cmake failed"
make -C "$folder/build" -j "$(nproc)" install DESTDIR="$folder/root" >"$log" 2>&1 || because "the build failed"
# The control file last: it is what tells that everything is there.
{
    cp "$folder/root$server"/lib/timescaledb*.so "$server/lib/" &&
        cp "$folder/root$extension"/timescaledb--*.sql "$extension/" &&
        cp "$folder/root$extension/timescaledb.control" "$extension/"
} >"$log" 2>&1 || cannot "it could not be copied to its place ($(tail -n 1 "$log"))"
say "TimescaleDB $(sed -n "s/^default_version = '\(.*\)'/\1/p" "$extension/timescaledb.control") is installed"
