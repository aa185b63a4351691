"""/api/openapi.json: the API's description, openapi.yaml beside this file, as JSON."""

from __future__ import annotations

import asyncio
import functools
import json
from importlib import resources
from typing import Any

import yaml

from tornado_status import __version__
from tornado_status.api.handler import Handler


def load_document() -> dict[str, Any]:
    """Return the OpenAPI document, with this server's version filled in."""
    text = (resources.files(__package__) / "openapi.yaml").read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    document["info"]["version"] = __version__
    return document


class OpenApiHandler(Handler):
    """`GET`: the document. Every client certificate may read it."""

    async def get(self) -> None:
        self.write_json(await asyncio.to_thread(_document_json))


@functools.cache
def _document_json() -> bytes:
    return json.dumps(load_document(), separators=(",", ":")).encode()
