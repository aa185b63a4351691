"""The board: one page for readers, and the files that it is made of, all from this package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from tornado.template import Template

from tornado_status.api.problem import Problem
from tornado_status.api.users import ReadHandler

# Only what comes from this server; no inline code or style; in nobody's frame.
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
class File:
    """A file of the board, read once. `tag` is its ETag."""

    body: bytes
    content_type: str
    tag: str


@dataclass(frozen=True, slots=True)
class Board:
    """What the page is made of; `late_after_s` and `offline_after_s` are of silence."""

    late_after_s: float
    offline_after_s: float
    page: Template
    refusal: Template
    files: dict[str, File]


def load_board(late_after_s: float, offline_after_s: float) -> Board:
    """Read the board's files from the package."""
    folder = resources.files(__package__) / "files"
    return Board(
        late_after_s,
        offline_after_s,
        Template((folder / "index.html").read_bytes()),
        Template((folder / "no.html").read_bytes()),
        {**_files(folder, ""), **_files(folder / "vendor", "vendor/")},
    )


def _files(folder: Traversable, prefix: str) -> dict[str, File]:
    found = {}
    for entry in folder.iterdir():
        content_type = CONTENT_TYPES.get(entry.name[entry.name.rfind(".") :])
        if content_type is not None:
            body = entry.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            found[prefix + entry.name] = File(body, content_type, tag)
    return found


class BoardPageHandler(ReadHandler):
    """`/`: the page for readers; for others, in a browser, a page that says no."""

    board: Board

    async def get(self) -> None:
        _set_security_headers(self)
        if not self.access.may_read_all(self.check_in.email):
            if "text/html" not in self.request.headers.get("Accept", ""):
                self.require_reader()
            self.set_status(403)
        reader = self.get_status() == 200
        template = self.board.page if reader else self.board.refusal
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(
            template.generate(
                email=self.check_in.email,
                late_after_s=f"{self.board.late_after_s:g}",
                offline_after_s=f"{self.board.offline_after_s:g}",
            )
        )


class BoardFileHandler(ReadHandler):
    """`/board/…`: styles, scripts and pictures of the page."""

    board: Board

    async def get(self, name: str) -> None:
        self.require_reader()
        file = self.board.files.get(name)
        if file is None:
            raise Problem(404, "There is nothing here")
        _set_security_headers(self)
        self.set_header("Cache-Control", "private, no-cache")  # kept, and asked about each time
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
