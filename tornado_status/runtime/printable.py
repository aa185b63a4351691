"""Text of a peer, on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` as one line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
