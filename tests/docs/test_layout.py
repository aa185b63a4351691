"""The tree in docs/architecture.md is that of the files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import pytest

from tests.support.harness import ROOT

pytestmark = pytest.mark.once

PACKAGES = ("tornado_status", "listeners", "clients", "certs_gen")
INDENT = 2


def tree_in(page: str) -> set[str]:
    """Return the folders and modules that the block under "## Layout" names, as paths.

    Each line has one entry, or several of one folder with commas: `  store/  text`, `  a.py, b.py`.
    """
    block = re.search(r"^## Layout\n.*?^```\w*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None, 'no block under "## Layout"'
    found: set[str] = set()
    above: list[str] = []
    for line in block[1].splitlines():
        entry = re.fullmatch(r"( *)([\w.-]+/?(?:, [\w.-]+/?)*)(?: {2,}.*)?", line)
        assert entry is not None, f"not an entry: {line!r}"
        depth, rest = divmod(len(entry[1]), INDENT)
        assert not rest and depth <= len(above), f"wrong indentation: {line!r}"
        names = entry[2].split(", ")
        found |= {str(PurePosixPath(*above[:depth], name)) for name in names}
        above = [*above[:depth], names[0]] if names[0].endswith("/") else above[:depth]
    return found


def test_the_tree_has_every_folder_and_no_other() -> None:
    """A module that it names exists, too."""
    listed = tree_in((ROOT / "docs" / "architecture.md").read_text())
    folders = {
        str(path.parent.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert folders - listed == set(), "folders that the page does not list"
    assert {name for name in listed if not (ROOT / name).exists()} == set(), "gone"


def test_a_tree_is_read_with_its_folders() -> None:
    """Siblings, modules beside each other, and text behind them."""
    page = """
## Layout

```
store/              the database
  follow/           following the log
    feed.py, x.py   text: with, commas
  queries.py
api/
```
"""
    assert tree_in(page) == {
        *("store", "store/follow", "store/follow/feed.py", "store/follow/x.py"),
        *("store/queries.py", "api"),
    }
    for wrong in ("   three.py", "    too_deep.py", "a phrase without a name"):
        with pytest.raises(AssertionError, match=wrong.strip()):
            tree_in(f"## Layout\n```\n{wrong}\n```\n")
