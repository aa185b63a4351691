#!/usr/bin/env bash
# Check in with a certificate whose common name is no e-mail address (bad_client.crt).
# Exit status 0: refused for that, as it must be. URL and CERTS: see request.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=request.sh
source "$(dirname "${BASH_SOURCE[0]}")/request.sh"

request bad_client
echo "$ANSWER"
[ "$VERDICT" = answered ] &&
    [ "$ANSWER" = 'Refused (400 Bad Request): CN must be a valid email address' ]
