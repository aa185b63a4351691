"""The board: one page for readers, and the files that it is made of, all from this package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from tornado.template import Template

from tornado_status.api.error_page.render import HTML, set_security_headers
from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import ReadHandler

# Content from this server only, and no inline code or style.
SOURCES = ("script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'")
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class BoardFile:
    """A file of the board, read once. `tag` is its ETag."""

    body: bytes
    content_type: str
    tag: str


@dataclass(frozen=True, slots=True)
class BoardPage:
    """The board's template and files."""

    page: Template
    files: dict[str, BoardFile]


def load_board() -> BoardPage:
    """Read the board's files from the package."""
    folder = resources.files(__package__) / "files"
    return BoardPage(
        Template((folder / "index.html").read_bytes()),
        {**_read_files(folder, ""), **_read_files(folder / "vendor", "vendor/")},
    )


def _read_files(folder: Traversable, prefix: str) -> dict[str, BoardFile]:
    found = {}
    for entry in folder.iterdir():
        content_type = CONTENT_TYPES.get(entry.name[entry.name.rfind(".") :])
        if content_type is not None:
            body = entry.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[prefix + entry.name] = BoardFile(body, content_type, tag)
    return found


class BoardPageHandler(ReadHandler):
    """`/`: the board, for readers."""

    board: BoardPage

    async def get(self) -> None:
        self.require_reader()
        set_security_headers(self, *SOURCES)
        self.set_header("Content-Type", HTML)
        self.finish(self.board.page.generate(email=self.check_in.email))


class BoardFileHandler(ReadHandler):
    """`/board/…`: styles, scripts and pictures of the page."""

    board: BoardPage

    async def get(self, name: str) -> None:
        self.require_reader()
        file = self.board.files.get(name)
        if file is None:
            raise Problem(404, "There is nothing here")
        set_security_headers(self, *SOURCES)
        self.set_header("Cache-Control", "private, no-cache")  # cached, and revalidated each time
        self.set_header("Etag", file.tag)
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
            return
        self.set_header("Content-Type", file.content_type)
        self.finish(file.body)
