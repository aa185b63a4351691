#!/usr/bin/env bash
# Usage: on_each_python.sh VERSION...
# Run the tests that may depend on Python's version on every other installed Python. Each has a
# fresh virtual environment with the locked dependencies.
# `make check` has run all tests on one of them.
set -euo pipefail
cd "$(dirname "$0")/.."
tests=(tests/unit tests/server tests/system/test_failover.py tests/system/test_package.py)
done=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' || true)
work=$(mktemp -d)
chmod 755 "$work" # a test becomes an ordinary user, who needs this Python too
trap 'rm -rf "$work"' EXIT
for version in "$@"; do
    [ "$version" != "$done" ] || continue
    python=""
    for candidate in "python$version" /usr/bin/"python$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
        if "$candidate" -c "import sys, venv, ensurepip
sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "== Python $version: untested here, no interpreter"
        continue
    fi
    echo "== Python $version ($("$python" -V))"
    "$python" -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --require-hashes -r requirements/dev.txt
    "$work/$version/bin/pip" install --quiet --no-deps --no-build-isolation -e .
    "$work/$version/bin/python" -m tests.support.run_tests -q -m "not once" "${tests[@]}"
    rm -rf "${work:?}/$version"
done
