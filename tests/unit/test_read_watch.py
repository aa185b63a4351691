"""A TLS read or handshake that does not return is ended."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

import pytest

from tornado_status.runtime import read_watch
from tornado_status.runtime.read_watch import ReadWatch

CONTROL_S = 0.3
NEVER_S = 3600.0


@pytest.fixture
def secure() -> Iterator[ssl.SSLSocket]:
    """A server's side of a connection whose client is silent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours, theirs = socket.socketpair()
    with (
        theirs,
        context.wrap_socket(
            ours, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        ) as wrapped,
    ):
        yield wrapped


@pytest.mark.parametrize("does", ["read", "do_handshake"])
@pytest.mark.parametrize("longest_s", [-1, NEVER_S], ids=["watched", "control"])
def test_a_call_that_does_not_return_is_ended(
    secure: ssl.SSLSocket, does: str, longest_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits instead of being busy, which is long enough for a limit below zero."""
    monkeypatch.setattr(read_watch, "LONGEST_READ_S", longest_s)
    watched = longest_s != NEVER_S
    secure.settimeout(None if watched else CONTROL_S)
    watch = ReadWatch()
    try:
        with pytest.raises(ssl.SSLEOFError if watched else TimeoutError):
            getattr(secure, does)()
    finally:
        watch.close()
