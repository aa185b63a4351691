"""The check-in connection of a proxy that terminates TLS: it carries the check-ins of all clients.

A head is matched to its client by its exact bytes: a proxy writes the same ones for each check-in
over a client's connection. Ordinary HTTP handles any new or unusual head and every refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

from tornado_status.errors import ForwardedError, IdentityError
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.check_in_service import CheckInService
from tornado_status.ingress.connection import CheckInConnection
from tornado_status.ingress.fast_path import plain_headers
from tornado_status.ingress.identity_shares import Share, Shares
from tornado_status.ingress.peer_stream import CheckInStream
from tornado_status.ingress.trust import AuthResult
from tornado_status.model.records import CheckIn
from tornado_status.runtime.base_acceptor import Address
from tornado_status.runtime.bounded_dict import BoundedDict

MAX_HEAD = 16 * 1024  # bytes, with a certificate and its chain; a longer one is ordinary HTTP
MAX_REMEMBERED = 8192  # heads, of 2 KB each; an evicted one is parsed again

# Headers that proxies add. They change nothing here, but for the two that are configured.
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

_NO_CLIENT = CheckIn("", "", 0, "", "")


@dataclass(frozen=True, slots=True)
class CachedClient:
    """The client that a head belongs to, and the result of its certificate."""

    check_in: CheckIn
    auth: AuthResult
    share: Share


class ClientCache:
    """Caches the heads that are plain check-ins, with their clients."""

    def __init__(self, authenticator: RequestAuthenticator, shares: Shares) -> None:
        self._shares = shares
        self._authenticator = authenticator
        self._trust = authenticator.trust
        self._clients: BoundedDict[bytes, CachedClient] = BoundedDict(MAX_REMEMBERED)

    def get(self, head: bytes) -> CachedClient | None:
        """Return the client of a cached head, None if it is not there or the CAs have changed."""
        client = self._clients.get(head)
        if client is None or not self._trust.chain_holds(client.auth):
            return None
        return client

    def parse(self, head: bytes) -> CachedClient | None:
        """Return the client of a head, None if it is no plain check-in or is refused."""
        headers = plain_headers(head, ADDED) if len(head) <= MAX_HEAD else None
        if headers is None:
            return None
        try:
            check_in, auth = self._authenticator.check_in_of(headers.get_list)
        except (ForwardedError, IdentityError):
            return None
        client = CachedClient(check_in, auth, self._shares.of(check_in.email))
        self._clients[head] = client
        return client


class SharedConnection(CheckInConnection):
    """One connection of a proxy."""

    __slots__ = ("_client", "_clients")

    max_head = MAX_HEAD

    def __init__(
        self, service: CheckInService, stream: CheckInStream, address: Address, clients: ClientCache
    ) -> None:
        nobody = CachedClient(_NO_CLIENT, AuthResult((), 0), Share())
        super().__init__(service, stream, address, nobody.check_in, nobody.auth, nobody.share)
        self._clients = clients
        self._client = nobody  # of the head that is taken next

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
        return self._is_known(head) or self._is_from(self._clients.parse(head))

    def _is_known(self, head: bytes) -> bool:
        return self._is_from(self._clients.get(head))

    def _is_from(self, client: CachedClient | None) -> bool:
        if client is None:
            return False
        self._client = client
        return True

    def _take(self, head: bytes, rest: bytes) -> bool:
        client = self._client
        if self._unanswered and client.share is not self._share:
            # Commits take turns by identity: only check-ins of one keep their order.
            self._held = head + rest
            return False
        self._check_in, self._auth, self._share = client.check_in, client.auth, client.share
        return super()._take(head, rest)

    def _is_last(self) -> bool:
        return self._service.draining  # CAs change under clients' connections, not under this one
