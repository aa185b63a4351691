"""The base of the reading handlers: permissions, and the parameters of paths and queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornado_status.api.error_page.render import Advice
from tornado_status.api.handler import Handler
from tornado_status.api.problem import Problem
from tornado_status.model.email_address import parse_email

if TYPE_CHECKING:
    from tornado_status.api.access import Access
    from tornado_status.api.dependencies import ApiStore

DEFAULT_LIMIT = 1000  # entries of a page


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

    def set_next(self, path: str) -> None:
        """Name the next page in a Link header (RFC 8288)."""
        self.set_header("Link", f'<{path}>; rel="next"')
