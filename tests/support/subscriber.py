"""A client of /api/stream that reads as a browser's EventSource does."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

from tests.support.harness import LOOPBACK, PATIENCE_S, Server


@dataclass(frozen=True)
class StreamMessage:
    """One message: the number in its id, its kind, and its data as parsed JSON."""

    id: int
    kind: str
    data: dict[str, Any]


class Subscriber:
    """One connection to /api/stream. `last` is the id to resume from, or its number alone."""

    def __init__(
        self,
        server: Server,
        query: str = "",
        *,
        cert: str = "operator",
        last: int | str | None = None,
        headers: dict[str, str] | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        sock = socket.socket()
        sock.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            sock.connect((LOOPBACK, server.port))
            context = server.client_context(cert)
            self._secure = context.wrap_socket(sock, server_hostname="localhost")
            self._file = self._secure.makefile("rb")
            undo.callback(self.close)
            self._ask(server, query, last, headers or {})
            undo.pop_all()
        self.last = 0 if last is None else number_of(last)
        self.last_id = "" if last is None else str(last)
        self.comments: list[str] = []
        self.ended_well = False  # with HTTP's last chunk, not by a closed connection alone
        self._lines: list[bytes] = []
        self._partial = b""

    def _ask(
        self, server: Server, query: str, last: int | str | None, headers: dict[str, str]
    ) -> None:
        sent = {"Host": f"localhost:{server.port}", **headers}
        if last is not None:
            sent["Last-Event-ID"] = str(last)
        lines = [f"GET /api/stream{query} HTTP/1.1", *(f"{k}: {v}" for k, v in sent.items())]
        self._secure.sendall("\r\n".join([*lines, "", ""]).encode())
        self.status = int(self._file.readline().split()[1])
        self.headers = http.client.parse_headers(self._file)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._secure.close()

    def next_message(self) -> StreamMessage | None:
        """Return the next whole message; None at the end of the stream or connection."""
        fields: dict[str, str] = {}
        while (line := self._line()) is not None:
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            else:
                if "id" in fields:
                    self.last_id = fields["id"]
                    self.last = number_of(self.last_id)
                if "data" in fields:
                    message = json.loads(fields["data"])
                    return StreamMessage(number_of(fields["id"]), fields["event"], message)
                fields = {}
        return None

    def _line(self) -> str | None:
        while not self._lines:
            chunk = self._chunk()
            if not chunk:
                return None
            *self._lines, self._partial = (self._partial + chunk).split(b"\n")
            self._lines.reverse()
        return self._lines.pop().decode()

    def _chunk(self) -> bytes:
        try:
            size = self._file.readline()
            if not size.endswith(b"\r\n"):
                return b""
            length = int(size, 16)
            data = self._file.read(length + 2)
        except TimeoutError:
            raise
        except OSError:
            return b""
        self.ended_well = (size, data) == (b"0\r\n", b"\r\n")
        return data[:length]  # also of a chunk that is cut off, as a browser does

    def expect(self, *kinds: str) -> StreamMessage:
        """Return the next message of these kinds, or of any but `position`."""
        while (message := self.next_message()) is not None:
            if message.kind in kinds or (not kinds and message.kind != "position"):
                return message
        raise AssertionError(f"the stream ended: {self.comments}")

    def events(self, count: int) -> list[dict[str, Any]]:
        return [self.expect().data for _ in range(count)]

    def until(self, seq: int) -> list[dict[str, Any]]:
        """Return the events up to a number."""
        found: list[dict[str, Any]] = []
        while not found or found[-1]["seq"] < seq:
            found.append(self.expect().data)
        return found

    def rest(self) -> list[dict[str, Any]]:
        """Return the events up to the end of the stream."""
        found = []
        while (message := self.next_message()) is not None:
            if message.kind != "position":
                found.append(message.data)
        return found

    def answer(self) -> tuple[int, str | None]:
        """Return status and detail of a refusal, and close."""
        body = self._file.read(int(self.headers["Content-Length"]))
        detail = None
        with contextlib.suppress(ValueError):
            detail = json.loads(body).get("detail")
        self.close()
        return self.status, detail


def number_of(message_id: int | str) -> int:
    """Return the number in a message's id, which has the log id before it."""
    return int(str(message_id).rpartition(":")[2])
