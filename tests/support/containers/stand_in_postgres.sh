#!/usr/bin/env bash
# Usage: stand_in_postgres.sh OUT.tar
#
# Make a stand-in for the image postgres:17.12-trixie from Debian's packages, for machines without an
# image registry. It has that image's variables, data directory and order of events.
#
# shellcheck disable=SC2016 # the hooks are the programs of shells that mmdebstrap starts
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export here
mmdebstrap --quiet --variant=minbase --format=tar --include=postgresql-17 \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --essential-hook='mkdir -p "$1/etc/postgresql-common"' \
    --essential-hook='echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"' \
    --customize-hook='install -m 755 "$here/postgres_entrypoint.sh" "$1/usr/local/bin/docker-entrypoint.sh"' \
    --customize-hook='ln -s /usr/lib/postgresql/17/bin/pg_isready /usr/lib/postgresql/17/bin/psql /usr/lib/postgresql/17/bin/pg_dump "$1/usr/local/bin/"' \
    trixie "$1"
