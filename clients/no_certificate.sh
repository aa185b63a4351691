#!/usr/bin/env bash
# Try to check in without a certificate.
# Exit status 0: refused, as it must be, in TLS or (client_certificate: optional) with a 400.
# URL and CERTS: see request.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=request.sh
source "$(dirname "${BASH_SOURCE[0]}")/request.sh"

request ''
echo "$ANSWER"
[ "$VERDICT" = alert ] ||
    { [ "$VERDICT" = answered ] &&
        [ "$ANSWER" = 'Refused (400 Bad Request): No required SSL certificate was sent' ]; }
