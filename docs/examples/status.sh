#!/bin/sh
# Ask the server: `here EMAIL`, `history EMAIL`, or `follow`. With curl, and sed to parse the answers.
set -eu
server=https://${STATUS_ADDRESS:-localhost:8443}
certs=${STATUS_CERTS:-certs}

ask() {
    curl --silent --show-error --fail-with-body --no-buffer --cacert "$certs/ca.crt" \
        --cert "$certs/operator.crt" --key "$certs/operator.key" "$server$1"
}

# Print a page and all later ones, a line each.
pages() {
    next=$1
    while [ -n "$next" ]; do
        page=$(ask "$next")
        printf '%s\n' "$page"
        next=$(printf '%s\n' "$page" | sed -n 's/.*"next":"\([^"]*\)"}$/\1/p')
    done
}

case $1 in
here) ask "/api/users/$2" && echo ;;
history) pages "/api/users/$2/history" ;;
follow)
    # After an interruption this takes a new snapshot. To resume instead, remember the last `id:` and
    # send it as `after`.
    while sleep 1; do
        users=$(pages /api/users) || continue
        printf '%s\n' "$users"
        # Of the first page: the stream repeats the events after it.
        after=$(printf '%s\n' "$users" | sed -n '1s/^{"log":"\([^"]*\)","head":\([0-9]*\),.*/after=\2\&log=\1/p')
        # A user's record already includes the events up to its own `seq`.
        ask "/api/stream?$after" | sed -un '/^data: .*"event":"gap"/q; s/^data: //p' || :
    done
    ;;
esac
