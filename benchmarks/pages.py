"""Pages with marked blocks that a benchmark writes: the text around them stays. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping


def begin(name: str, command: str) -> str:
    """Return the comment before a block, which says who writes it."""
    return f"<!-- {name}: written by {command} -->"


def end(name: str) -> str:
    return f"<!-- end of {name} -->"


def fill(page: str, blocks: Mapping[str, str], command: str) -> str:
    """Return `page` with the contents of all marked blocks of this command made anew.

    Raises `ValueError` where a block has no place, or a place no block.
    """
    marked = re.findall(rf"(?m)^<!-- (\S+): written by {re.escape(command)} -->$", page)
    if sorted(marked) != sorted(blocks):
        raise ValueError(f"the page has the blocks {sorted(marked)}, expected {sorted(blocks)}")
    for name, text in blocks.items():
        before, _, rest = page.partition(begin(name, command))
        _, ended, after = rest.partition(end(name))
        if not ended:
            raise ValueError(f"the block {name} has no end")
        page = f"{before}{begin(name, command)}\n\n{text}\n\n{end(name)}{after}"
    return page
