#!/bin/sh
# Release the leader's lock if its machine is silent, sooner than Patroni's ttl of at least 20 s:
# docs/high-availability.md
# Usage: release-silent-leader SCOPE DOMAIN
set -u
silent=0

answers() {
    curl --silent --max-time 1 --output /dev/null "http://$1:8008/liveness" &
    patroni=$!
    pg_isready --quiet --timeout=1 --host="$1"
    [ $? -le 1 ] || wait "$patroni" # 1: it answers, and does not accept connections yet
}

while sleep 1; do
    # Only the synchronous standby decides: while it hears nothing, no commit is acknowledged.
    if ! curl --silent --fail --max-time 1 --output /dev/null http://localhost:8008/sync; then
        silent=0
        continue
    fi
    lock=$(etcdctl get "/service/$1/leader" --write-out=fields)
    leader=$(echo "$lock" | sed -n 's/^"Value" : "\(.*\)"$/\1/p')
    if [ -z "$leader" ] || answers "$leader.$2"; then
        silent=0
    elif [ $((silent += 1)) -ge 2 ]; then
        echo "releasing the lock of $leader: it does not answer"
        # The lease, not the key alone: an old leader that comes back renews it no more.
        etcdctl lease revoke "$(printf %x "$(echo "$lock" | sed -n 's/^"Lease" : //p')")"
        silent=0
    fi
done
