#!/usr/bin/env bash
# Usage: stand_in_python.sh OUT.tar
#
# Make a stand-in for the image python:3.13-slim-trixie from Debian's packages, for machines without
# an image registry.
#
# shellcheck disable=SC2016 # the hooks are the programs of shells that mmdebstrap starts
set -euo pipefail
mmdebstrap --quiet --variant=minbase --format=tar \
    --include=python3-minimal,python3-pip,python3-venv,ca-certificates,netbase,tzdata \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
    --customize-hook='ln -s /usr/bin/python3 "$1/usr/local/bin/python"' \
    --customize-hook='cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"' \
    trixie "$1"
