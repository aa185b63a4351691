"""The base of the reading handlers: permissions, and the parameters of paths and queries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from tornado_status.api.error_page.render import Advice
from tornado_status.api.handler import Handler
from tornado_status.api.problem import Problem
from tornado_status.model.email_address import parse_email

if TYPE_CHECKING:
    from tornado_status.api.access import Access
    from tornado_status.api.dependencies import ApiStore

DEFAULT_LIMIT = 1000  # entries of a page
PIECE = 250  # entries read and sent at once: less than 100 KB, and some milliseconds


def next_piece(left: int | None = None) -> int:
    """Return how many entries to read next: a piece, of `left` if their number is known."""
    return PIECE if left is None else min(left, PIECE)


class ReadHandler(Handler):
    """Base of handlers whose answers depend on `access`."""

    store: ApiStore
    access: Access

    def require_reader(self) -> None:
        """Answer 403 unless the client is a reader."""
        if not self.access.may_read_all(self.check_in.email):
            self.forbid("Only readers may see this", Advice.READERS)

    def readable_email(self, text: str) -> str:
        """Return the canonical form of an e-mail address that the client may read about."""
        if text.lower() == self.check_in.email:
            return self.check_in.email
        self.require_reader()
        return self.canonical_email(text)

    def canonical_email(self, text: str) -> str:
        """Return the canonical form of an e-mail address. Raises `Problem`."""
        try:
            return parse_email(text)
        except ValueError as error:
            raise Problem(400, str(error)) from error

    def has(self, name: str) -> bool:
        """Return whether the query has this parameter."""
        return self.get_query_argument(name, None) is not None

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Return an integer parameter of the query. Raises `Problem` if it is out of bounds."""
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdecimal() and len(text) <= 19):
            raise Problem(400, f"{name}: expected a whole number, {low}-{high}")
        value = int(text)
        if not low <= value <= high:
            raise Problem(400, f"{name}: expected {low}-{high}")
        return value

    async def send_list(
        self,
        opening: bytes,
        first: list[bytes],
        rest: AsyncIterator[list[bytes]] | None,
        closing: bytes,
    ) -> None:
        """Send a JSON list between `opening` and `closing`: at once if there is no `rest`."""
        self.set_header("Content-Type", "application/json")
        if rest is None:
            await self.send_whole(opening + b",".join(first) + closing)
            return

        async def pieces() -> AsyncIterator[bytes]:
            yield opening + b",".join(first)
            async for more in rest:
                if more:
                    yield b"," + b",".join(more)
            yield closing

        await self.send_pieces(pieces())

    def is_unchanged(self, tag: str) -> bool:
        """Set this ETag. Return True, and set the status 304, if the client has it already."""
        self.set_header("ETag", tag)
        if self.check_etag_header():
            self.set_status(304)
            return True
        return False

    def set_next(self, path: str) -> None:
        """Name the next page in a Link header (RFC 8288)."""
        self.set_header("Link", f'<{path}>; rel="next"')
