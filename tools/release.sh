#!/usr/bin/env bash
# make release VERSION=x.y.z: check, build and tag a release. Pushes nothing.
# RELEASE_CHECK is the command that must pass, `make check` by default.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
version=${1-}
tag="v$version"

refuse() {
    echo "release: $*" >&2
    exit 2
}

[[ "$version" =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || refuse "expected VERSION=x.y.z, got '$version'"
code=$("$python" -c "import tornado_status; print(tornado_status.__version__)")
[ "$code" = "$version" ] ||
    refuse "tornado_status/__init__.py says $code, not $version: set __version__ and commit it"
grep -qE "^## ${version//./\\.} - [0-9]{4}-[0-9]{2}-[0-9]{2}\$" CHANGELOG.md ||
    refuse "CHANGELOG.md has no section '## $version - YYYY-MM-DD': write it and commit it"
[ -z "$(git status --porcelain)" ] ||
    refuse "the working tree is not clean: commit or stash what \`git status\` shows"
[ -z "$(git tag --list "$tag")" ] ||
    refuse "the tag $tag exists: a released version is never built again"

${RELEASE_CHECK:-make check}

# The commit's time instead of today's: whoever builds the same commit gets the same files.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
rm -rf dist
"$python" -m build --no-isolation >/dev/null
"$python" - "$version" <<'END'
"""Read the metadata of both files as a package index does."""

import pathlib
import sys
import tarfile
import zipfile

from packaging.metadata import Metadata

version = sys.argv[1]
sdist = pathlib.Path(f"dist/tornado_status-{version}.tar.gz")
wheel = pathlib.Path(f"dist/tornado_status-{version}-py3-none-any.whl")
with tarfile.open(sdist) as archive:
    of_sdist = archive.extractfile(f"tornado_status-{version}/PKG-INFO").read()
with zipfile.ZipFile(wheel) as archive:
    of_wheel = archive.read(f"tornado_status-{version}.dist-info/METADATA")
for text in (of_sdist, of_wheel):
    metadata = Metadata.from_email(text, validate=True)
    assert str(metadata.version) == version, metadata.version
END
[ -z "$(git status --porcelain)" ] || refuse "the build changed the working tree: \`git status\`"

git tag --annotate "$tag" --message "tornado_status $version"
sha256sum dist/*
cat <<END
Tagged $tag. Nothing was pushed. To publish it:
    git push origin HEAD $tag
    twine upload dist/*
To undo it: git tag --delete $tag
END
