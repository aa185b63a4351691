"""How a database on another machine proves its identity: libpq's settings for it.

libpq by itself neither asks for a certificate nor refuses to send the password in clear.
"""

from __future__ import annotations

import ipaddress
import os

from tornado_status.model.records import normalise_ip
from tornado_status.store.failover import Parameters

# No other machine is between us and these addresses. A Unix socket is local, too.
LOCAL = ("127.0.0.0/8", "::1/128")
LOCAL_NAMES = ("localhost",)  # before it is resolved
VERIFIED = "verify-full"

# For a database that is not local, unless the URL or the variable says otherwise. With SCRAM the
# server must know the password too, and never sees it.
_DEFAULTS = (
    ("sslmode", "PGSSLMODE", VERIFIED),
    ("require_auth", "PGREQUIREAUTH", "scram-sha-256"),
)


def authenticated(parameters: Parameters) -> Parameters:
    """Return the parameters of one host. A remote one must prove its identity, unless they say."""
    if is_local(parameters):
        return parameters
    return {**{name: _default(*each) for name, *each in _DEFAULTS}, **parameters}


def sslmode(parameters: Parameters) -> str | None:
    """Return how much of a host's identity is verified. None: it is local."""
    return None if is_local(parameters) else authenticated(parameters)["sslmode"]


def is_local(parameters: Parameters) -> bool:
    """Return whether the host is this machine: a Unix socket or a loopback address."""
    named = parameters.get("hostaddr") or parameters.get("host")
    if not named:
        if "service" in parameters or os.environ.get("PGSERVICE"):
            return False  # its file names the host
        named = os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST") or "/"
    if named.startswith(("/", "@")) or named.lower() in LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(normalise_ip(named))
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(network) for network in LOCAL)


def _default(variable: str, value: str) -> str:
    return os.environ.get(variable) or value
