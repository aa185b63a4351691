# shellcheck shell=bash
# One check-in with curl, for the scripts beside this one: source it, then call `request`.
#
# URL     where to check in           (default: https://localhost:8443/api/client)
# CERTS   directory of certificates   (default: certs/ of this repository)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
URL=${URL:-https://localhost:8443/api/client}
CERTS=${CERTS:-$here/../certs}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# request NAME: check in with NAME.crt and NAME.key; if NAME is empty, without a certificate. Sets
#   VERDICT   answered, alert (the server refused in TLS) or failed (without a refusal)
#   ANSWER    a sentence to print
request() {
    local body=$scratch/body error=$scratch/error exit_status=0 http_status=000 detail
    local -a certificate=()
    if [ -n "$1" ]; then
        certificate=(--cert "$CERTS/$1.crt" --key "$CERTS/$1.key")
    fi
    # In TLS 1.3 the server judges the certificate when the client believes the handshake done. Its
    # alert can be overtaken by the reset that follows: a bare reset (35, 55, 56) proves nothing, so
    # ask again.
    for _ in 1 2 3; do
        exit_status=0
        : >"$body"
        # -q and --noproxy: what this machine has set for curl must not change the outcome.
        http_status=$(curl -q --noproxy '*' --silent --show-error --max-time 10 \
            --cacert "$CERTS/ca.crt" ${certificate[@]+"${certificate[@]}"} --request POST \
            --output "$body" --write-out '%{http_code}' "$URL" 2>"$error") || exit_status=$?
        case $exit_status in
            35 | 55 | 56) if grep -qi alert "$error"; then break; fi ;;
            *) break ;;
        esac
    done

    if [ "$exit_status" -eq 0 ]; then
        VERDICT=answered
        # The body is the server's text: nothing but printable ASCII to the terminal.
        detail=$(LC_ALL=C tr -cd '\040-\176' <"$body" |
            sed -n 's/.*"detail" *: *"\([^"]*\)".*/\1/p')
        case $http_status in
            204) ANSWER='Success! (204 No Content)' ;;
            400) ANSWER="Refused (400 Bad Request)${detail:+: $detail}" ;;
            403) ANSWER="Refused (403 Forbidden)${detail:+: $detail}" ;;
            *) ANSWER="Unexpected answer ($http_status)${detail:+: $detail}" ;;
        esac
    else
        # Only these alerts are about a client's certificate: "internal error" and the like are not.
        # (Before TLS 1.3 a missing certificate was a "handshake failure".)
        if [[ $exit_status =~ ^(35|55|56)$ ]] && grep -Eqi \
            'alert.*(certificate|unknown ca|access denied|handshake failure)' "$error"; then
            VERDICT=alert
        else
            VERDICT=failed
        fi
        ANSWER=$(LC_ALL=C tr -cd '\012\040-\176' <"$error" | head -n 1)
        ANSWER=${ANSWER:-"curl: ($exit_status)"}
        [ "$VERDICT" = failed ] || ANSWER="Refused (TLS alert): $ANSWER"
    fi
}
