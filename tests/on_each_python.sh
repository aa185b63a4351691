#!/usr/bin/env bash
# Run the tests on every other installed Python that the project supports, each in a fresh virtual
# environment with the locked dependencies. `make test` has run them on the newest. What fails beside
# other tests runs once more by itself, as in .ci/run.
set -euo pipefail
cd "$(dirname "$0")/.."
done=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
work=$(mktemp -d)
chmod 755 "$work" # a test becomes an ordinary user, who needs this Python too
trap 'rm -rf "$work"' EXIT
for version in 3.11 3.12 3.13; do
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
        echo "== Python $version is not installed"
        continue
    fi
    echo "== Python $version ($("$python" -V))"
    "$python" -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --require-hashes -r requirements/dev.txt
    "$work/$version/bin/pip" install --quiet --no-deps --no-build-isolation -e .
    tests=("$work/$version/bin/python" -m pytest -q -o cache_dir="$work/$version/cache" -m "not once")
    "${tests[@]}" -n auto --dist loadfile --no-loadscope-reorder ||
        "${tests[@]}" --last-failed --last-failed-no-failures none
    rm -rf "${work:?}/$version"
done
