#!/bin/sh
# Makes the database where there is none: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB; PGDATA, a folder in a volume.
set -eu
[ "${1:-}" = postgres ] || exec "$@"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # In a folder of its own until it is whole: a container may be killed in the middle.
    new=$PGDATA.new
    rm -rf "$new"
    printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
    initdb --pgdata="$new" --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 >/dev/null
    printf "listen_addresses = '*'\nshared_preload_libraries = 'timescaledb'\n" >>"$new/postgresql.conf"
    echo "host all all all scram-sha-256" >>"$new/pg_hba.conf"
    export PGPASSWORD="$POSTGRES_PASSWORD" PGUSER="$POSTGRES_USER"
    pg_ctl --pgdata="$new" --wait --silent --log=/tmp/log --options="-c listen_addresses=''" start
    [ "$POSTGRES_DB" = postgres ] || createdb "$POSTGRES_DB"
    psql --quiet --dbname="$POSTGRES_DB" --command='CREATE EXTENSION timescaledb' >/dev/null 2>&1
    pg_ctl --pgdata="$new" --wait --silent stop
    rm -f /tmp/password
    mv "$new" "$PGDATA"
fi
exec "$@"
