#!/usr/bin/env bash
# The entry point of the stand-in for the image postgres:17.12-trixie. As root it gives the data directory
# to postgres and becomes that user. It makes the database the first time, and then execs PostgreSQL.
set -euo pipefail
export PGDATA=${PGDATA:-/var/lib/postgresql/data} PATH=/usr/lib/postgresql/17/bin:$PATH
user=${POSTGRES_USER:-postgres}
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chown postgres "$PGDATA" /run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$user" --auth-host=scram-sha-256 --auth-local=trust \
        --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:?}") >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    pg_ctl --options="-c listen_addresses=''" --wait start >/dev/null
    createdb --username="$user" "${POSTGRES_DB:-$user}"
    pg_ctl --mode=fast --wait stop >/dev/null
fi
exec "$@" -c listen_addresses='*'
