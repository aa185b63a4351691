"""Check in with a status server: one empty request. Prints nothing; for errors see `https`."""

from __future__ import annotations

import http
from pathlib import Path
from types import TracebackType

from clients.https import (
    NOT_NOW,
    Answer,
    HttpsClient,
    HttpsError,
    Refused,
    Unreachable,
    parse_url,
)

METHODS = ("POST", "PUT", "PATCH")

MAX_BODY = 64 * 1024  # bytes of an answer that should have a few hundred


class CheckInClient:
    """Checks in over one connection, which is kept open and replaced when it has to be.

    Not for use by several threads at once. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        url: str,
        *,
        certificate: Path | None,
        private_key: Path,
        ca: Path,
        timeout_s: float = 10.0,
        method: str = "POST",
    ) -> None:
        """Take the settings; see `HttpsClient` for the files and the time-out.

        Raises `SetUpError` for a URL that cannot be right.
        """
        target = parse_url(url)
        self._path = target.path
        self._method = method
        self._https = HttpsClient(
            target,
            certificate=certificate,
            private_key=private_key,
            ca=ca,
            timeout_s=timeout_s,
            max_body=MAX_BODY,
        )

    def __enter__(self) -> CheckInClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one. The next check-in opens another."""
        self._https.close()

    def check_files(self) -> None:
        """Read the files. Raises `SetUpError` that names the one that is wrong."""
        self._https.load_context()

    def check_in(self) -> None:
        """Send one empty request, and return once the server has recorded it (204).

        If a kept connection turns out to be closed, the request is sent again: at worst the
        check-in is recorded twice. Raises `SetUpError`, `Refused` or `Unreachable`.
        """
        answer = self._https.request(self._method, self._path)
        if answer.status == http.HTTPStatus.NO_CONTENT:
            return
        failure = _failure(answer)
        if isinstance(failure, Refused):
            self.close()  # a new connection reads the files again: they may have been renewed
        raise failure


def _failure(answer: Answer) -> HttpsError:
    """Return what an answer other than 204 means."""
    status = answer.status
    try:
        title = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        title = str(status)
    because = f": {answer.detail}" if answer.detail else ""
    if status in NOT_NOW or status >= 500:
        return Unreachable(f"Not now ({title}){because}", answer.retry_after_s)
    if 400 <= status < 500:
        return Refused(f"Refused ({title}){because}", status)
    return Refused(f"Not recorded ({title}): expected 204, so this may be the wrong URL", status)
