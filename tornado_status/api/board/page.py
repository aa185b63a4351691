"""The board: one page for readers, and the files that it is made of, all from this package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from tornado.template import Template

from tornado_status.api.problem import Problem
from tornado_status.api.read_handler import ReadHandler

# Content from this server only, no inline code or style, and in no frame.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
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
    """The board's templates and files."""

    page: Template
    forbidden: Template
    files: dict[str, BoardFile]


def load_board() -> BoardPage:
    """Read the board's files from the package."""
    folder = resources.files(__package__) / "files"
    return BoardPage(
        Template((folder / "index.html").read_bytes()),
        Template((folder / "forbidden.html").read_bytes()),
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
    """`/`: the board for readers. In a browser, other users get a page that says why not."""

    board: BoardPage

    async def get(self) -> None:
        _set_security_headers(self)
        if not self.access.may_read_all(self.check_in.email):
            if "text/html" not in self.request.headers.get("Accept", ""):
                self.require_reader()
            self.set_status(403)
        is_reader = self.get_status() == 200
        template = self.board.page if is_reader else self.board.forbidden
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(template.generate(email=self.check_in.email))


class BoardFileHandler(ReadHandler):
    """`/board/…`: styles, scripts and pictures of the page."""

    board: BoardPage

    async def get(self, name: str) -> None:
        self.require_reader()
        file = self.board.files.get(name)
        if file is None:
            raise Problem(404, "There is nothing here")
        _set_security_headers(self)
        self.set_header("Cache-Control", "private, no-cache")  # cached, and revalidated each time
        self.set_header("Etag", file.tag)
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
            return
        self.set_header("Content-Type", file.content_type)
        self.finish(file.body)


def _set_security_headers(handler: ReadHandler) -> None:
    handler.set_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("Referrer-Policy", "no-referrer")
    handler.set_header("Cross-Origin-Opener-Policy", "same-origin")
