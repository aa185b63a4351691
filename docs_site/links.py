"""Links between files of the repository, as links between pages of the site."""

from __future__ import annotations

import posixpath
import re

# Files outside of docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "LICENSE": "license.md",
    "SECURITY.md": "reporting.md",
    "config.yaml": "reference/config.md",
    "tornado_status/api/openapi.yaml": "reference/api.md",
    "benchmarks/results/results.md": "benchmark-results.md",
}
FILES = (
    "files"  # folder of the site for files that are no pages, under their paths in the repository
)

_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def repository_path(link: str, source: str) -> str | None:
    """Return the path in the repository that `link` in the file `source` leads to, if it does."""
    if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def site_path(path: str) -> str:
    """Return where a file of the repository is in the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{FILES}/{path}"


def source_path(page: str) -> str:
    """Return the file of the repository that a page of the site is made from."""
    return {site: path for path, site in PAGES.items()}.get(page, f"docs/{page}")


def linked(markdown: str, source: str) -> set[str]:
    """Return the files of the repository that a page links to."""
    paths = (repository_path(match[2], source) for match in _LINK.finditer(markdown))
    return {path for path in paths if path is not None}


def relink(markdown: str, source: str) -> str:
    """Return the page made from `source` with links as they are in the site."""
    here = posixpath.dirname(site_path(source))

    def replace(match: re.Match[str]) -> str:
        path = repository_path(match[2], source)
        if path is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(site_path(path), here or '.')}{match[3]}"

    return _LINK.sub(replace, markdown)
