"""A web server that receives alerts, and the log entries that cause them."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Server,
    rows,
    wait_until,
)

SECRET = "whsec_" + base64.b64encode(b"a secret for tests only, 32 byte").decode()


@dataclass(frozen=True)
class Received:
    path: str
    headers: Any
    body: bytes

    @property
    def id(self) -> str:
        return str(self.headers["webhook-id"])

    @property
    def said(self) -> tuple[str, str]:
        """The kind and the e-mail's local part."""
        message = json.loads(self.body)
        return message["type"], message["data"].get("email", "").partition("@")[0]


class Receiver:
    """A web server that answers `status`, or whatever `answer` says, and remembers."""

    def __init__(
        self, port: int = 0, certs: Path | None = None, answer: Callable[[int], int] = lambda n: 204
    ) -> None:
        self.received: list[Received] = []
        self.headers: dict[str, str] = {}
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append(Received(self.path, self.headers, body))
                with contextlib.suppress(OSError):
                    self.send_response(answer(len(receiver.received)))
                    for name, value in receiver.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                pass

        self._server = Quiet((LOOPBACK, port), Handler)
        scheme = "http"
        if certs is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certs / "server.crt", certs / "server.key")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.port = self._server.server_address[1]
        self.url = f"{scheme}://localhost:{self.port}/hidden-path"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()

    def wait_for(self, count: int) -> list[Received]:
        wait_until(lambda: len(self.received) >= count, f"{count} messages")
        return list(self.received)

    @property
    def said(self) -> list[tuple[str, str]]:
        return [each.said for each in list(self.received)]


def alert(url: str, **more: Any) -> dict[str, Any]:
    return {"name": "plant", "url": url, "secret": SECRET, "events": ["offline", "back"], **more}


def adopted(server: Server, count: int = 1) -> None:
    """Wait until the alerts have begun: what comes from now on is told."""
    wait_until(
        lambda: len(server.rows("SELECT 1 FROM alert WHERE holder IS NOT NULL")) == count,
        "the alerts begin",
    )


def log(url: str, kind: str, email: str, age_s: float = 0.0) -> None:
    """Write an entry of the log as a server does: under the head's lock, with the next number."""
    rows(
        url,
        "WITH h AS (UPDATE head SET seq = seq + 1 RETURNING seq)"
        ", e AS (SELECT clock_timestamp() - %s * interval '1 second' AS at, %s AS event)"
        " INSERT INTO check_in (seq, at, event, email, last_seen, client_ip, client_port)"
        " SELECT seq, at, event, %s, CASE event WHEN 'offline' THEN at - interval '180 s' END,"
        " CASE event WHEN 'offline' THEN NULL ELSE inet '10.0.0.7' END,"
        " CASE event WHEN 'offline' THEN NULL ELSE 1 END FROM h, e",
        age_s,
        kind,
        f"{email}@example.com",
    )


def waiting(url: str) -> int:
    [(count,)] = rows(url, "SELECT count(*) FROM alert_message")
    return int(count)
