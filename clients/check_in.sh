#!/usr/bin/env bash
# Check in with the good certificate (client.crt). Exit status 0: checked in.
# URL and CERTS: see request.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=request.sh
source "$(dirname "${BASH_SOURCE[0]}")/request.sh"

request client
if [ "$VERDICT" = answered ] && [ "$ANSWER" = 'Success! (204 No Content)' ]; then
    echo "$ANSWER"
else
    echo "$ANSWER" >&2
    exit 1
fi
