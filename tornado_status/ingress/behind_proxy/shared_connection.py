"""The check-in connection of a proxy that terminates TLS: it carries everybody's check-ins.

Who speaks is known of each head by its exact bytes: a proxy writes the same ones for each check-in
over a client's connection. What is new or unusual, and whoever is refused, is for others to judge.
"""

from __future__ import annotations

from dataclasses import dataclass

from tornado_status.errors import ForwardedError, IdentityError
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.connection import CheckInConnection, CheckInService
from tornado_status.ingress.fast_path import plain_headers
from tornado_status.ingress.handshake import Address
from tornado_status.ingress.iostream import PlainStream
from tornado_status.ingress.trust import AuthResult
from tornado_status.model.records import CheckIn

MAX_HEAD = 16 * 1024  # bytes, with a certificate and its chain; what is longer is ordinary HTTP
MAX_REMEMBERED = 8192  # heads, of 2 KB each; one that is forgotten is parsed again

# What proxies add, and what changes nothing here but for the two that are configured.
ADDED = frozenset(
    {
        "Client-Cert",
        "Client-Cert-Chain",
        "X-Ssl-Client-Cert",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-For",
        "X-Forwarded-Proto",
        "X-Envoy-Internal",
        "X-Envoy-External-Address",
        "X-Envoy-Expected-Rq-Timeout-Ms",
        "Forwarded",
    }
)

_NOBODY = CheckIn("", "", 0, "", "")


@dataclass(frozen=True, slots=True)
class Spoken:
    """Whose check-in a head is. `until`, in seconds since the epoch, its chain is good."""

    check_in: CheckIn
    standing: AuthResult
    until: float


class ClientCache:
    """Remembers the heads that are plain check-ins, and whose they are."""

    def __init__(self, judge: RequestAuthenticator) -> None:
        self._judge = judge
        self._bundle = 0
        self._known: dict[bytes, Spoken] = {}

    def known(self, head: bytes, bundle: int, now: float) -> Spoken | None:
        """Return whose a head is, where that is known under this bundle of CAs."""
        if bundle != self._bundle:
            self._bundle = bundle
            self._known.clear()  # their chains were verified under the old CAs
        spoken = self._known.get(head)
        return spoken if spoken is not None and now <= spoken.until else None

    def of(self, head: bytes) -> Spoken | None:
        """Return whose a head is; None where it is no plain check-in, or refused."""
        headers = plain_headers(head, ADDED) if len(head) <= MAX_HEAD else None
        if headers is None:
            return None
        try:
            spoken = Spoken(*self._judge.check_in_of(headers.get_list))
        except (ForwardedError, IdentityError):
            return None
        if len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]  # the oldest
        self._known[head] = spoken
        return spoken


class SharedConnection(CheckInConnection):
    """One connection of a proxy."""

    __slots__ = ("_speakers",)

    max_head = MAX_HEAD

    def __init__(
        self, service: CheckInService, stream: PlainStream, address: Address, speakers: ClientCache
    ) -> None:
        super().__init__(service, stream, address, _NOBODY, AuthResult((), 0))
        self._speakers = speakers

    def _on_data(self, data: bytes) -> None:
        if data and self._partial:
            data, self._partial = self._partial + data, b""
        if not data:
            self.close()
        elif self._is_known(data):
            self._take(data, b"")
        else:
            self._process(data)

    def _is_plain(self, head: bytes) -> bool:
        return self._is_known(head) or self._speaks(self._speakers.of(head))

    def _is_known(self, head: bytes) -> bool:
        service = self._service
        return self._speaks(self._speakers.known(head, service.trust.bundle, service.epoch))

    def _speaks(self, spoken: Spoken | None) -> bool:
        if spoken is None:
            return False
        self._check_in, self._standing = spoken.check_in, spoken.standing
        return True

    def _is_last(self) -> bool:
        return self._service.draining  # CAs come and go under others' connections, not this one's
