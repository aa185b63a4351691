"""The doctor's checks of proxies: which are trusted, and the consequences. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from tornado_status.commands.doctor.finding import Finding, note, ok
from tornado_status.config.settings import IngressSettings, Settings

TOPIC = "proxies"
WIDE = 256  # addresses; no site has as many proxies


def examine(settings: Settings) -> Iterator[Finding]:
    """Check `ingress`, if there is a proxy in front."""
    ingress = settings.ingress
    trusted = ", ".join(map(str, ingress.trusted_proxies))
    if ingress.mode == "proxy":
        yield ok(
            TOPIC,
            f"ingress.mode: proxy: plain HTTP from {trusted}, with the client's certificate in "
            f"{ingress.certificate_header}; any other address is refused",
        )
        yield note(
            TOPIC,
            "between the proxy and this server nothing is encrypted, and a program at a trusted "
            "address can claim any identity",
            f"Keep that network private: is {settings.server.host}:{settings.server.port} "
            "reachable from nowhere else?",
        )
    elif ingress.proxy_protocol:
        yield ok(
            TOPIC,
            f"ingress.proxy_protocol: {trusted} begin with a PROXY header that says the client's "
            "address; any other address must not",
        )
    if ingress.mode == "proxy" or ingress.proxy_protocol:
        yield from _wide(ingress)


def _wide(ingress: IngressSettings) -> Iterator[Finding]:
    for network in ingress.trusted_proxies:
        if network.num_addresses > WIDE:
            yield note(
                TOPIC,
                f"ingress.trusted_proxies: {network} is a wide network, and each address in it is "
                "believed",
                "Name the proxies themselves.",
            )
