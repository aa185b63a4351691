#!/usr/bin/env bash
# Run the three scenarios against a running server and check each answer.
# Exit status 0: all three are as they must be. URL and CERTS: see request.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
failures=0

# scenario NAME EXPECTED: run NAME.sh, which judges the answer itself.
scenario() {
    local got verdict=ok
    if ! got=$("$BASH" "$here/$1.sh" 2>&1); then
        verdict=FAILED
        failures=$((failures + 1))
    fi
    printf '%-6s %s: expected %s; got %s\n' "$verdict" "$1" "$2" "${got//$'\n'/ }"
}

scenario check_in 'Success! (204 No Content)'
scenario bad_identity 'Refused (400 Bad Request): CN must be a valid email address'
scenario no_certificate 'a TLS alert, or Refused (400 Bad Request): No required SSL certificate was sent'
exit $((failures > 0))
