"""The NATS library's client, with limits on what a broker may send.

The library stores a message of any announced length, and a line that never ends. Import it only
where the library is installed.
"""

from __future__ import annotations

import logging
from typing import Any

from nats.aio.client import Client
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_MSG_PAYLOAD, Parser

# The default limit of a broker, so no publisher can send a larger one. Ours have 1,400 bytes.
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_LINE_BYTES = 64 * 1024  # INFO names all members of a cluster; other lines are short
# Subject and reply of a message, and headers, each. The library's queues count payloads only.
MAX_BESIDE_PAYLOAD_BYTES = 1024


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for asyncio's line about how the library reads TLS, at each end of a broker."""
    return "eof_received()" not in record.getMessage()


logging.getLogger("asyncio").addFilter(_is_news)


class BoundedClient(Client):
    """A client that closes the connection at a limit, and drops headers that are too long.

    `refused` says which limit, or is None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: str | None = None
        self._ps = _BoundedParser(self)

    def refuse(self, what: str) -> None:
        """Note what the broker did. Raises `ProtocolError`, after which the library closes."""
        self.refused = f"the broker sent {what}"
        raise ProtocolError

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        if len(subject) + len(reply) > MAX_BESIDE_PAYLOAD_BYTES:
            self.refuse(f"a subject of more than {MAX_BESIDE_PAYLOAD_BYTES} bytes")
        if headers and len(headers) > MAX_BESIDE_PAYLOAD_BYTES:
            headers = b""  # any publisher can add them, and an announcement needs none
        await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Other addresses would be used instead of those in the configuration, and add up.
        known = {name: value for name, value in info.items() if name != "connect_urls"}
        await super()._process_info(known, initial_connection)


class _BoundedParser(Parser):
    """Looks at what is still missing, after each read of the socket."""

    async def parse(self, data: bytes = b"") -> None:
        await super().parse(data)
        if self.state == AWAITING_MSG_PAYLOAD:
            if self.needed > MAX_MESSAGE_BYTES:
                self.nc.refuse(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
        elif len(self.buf) > MAX_LINE_BYTES:
            self.nc.refuse(f"a line of more than {MAX_LINE_BYTES} bytes")
