"""The addresses of trusted proxies."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence

from tornado_status.config.settings import Network
from tornado_status.model.records import normalise_ip


class TrustedProxies:
    """A set of IP addresses, as text: those within the configured networks."""

    def __init__(self, networks: Sequence[Network]) -> None:
        # Proxies are few and connect again and again.
        self._is_trusted = functools.lru_cache(1024)(functools.partial(_within, tuple(networks)))

    def __contains__(self, address: object) -> bool:
        return self._is_trusted(address)


def _within(networks: tuple[Network, ...], address: object) -> bool:
    if not isinstance(address, str):
        return False
    known = ipaddress.ip_address(normalise_ip(address))
    return any(known in network for network in networks)
