"""PROXY protocol headers, version 2: bytes to the client's address. No sockets here.

As in haproxy.org's proxy-protocol.txt. Version 1 is refused: it is text without a length, and every
proxy that supports it supports version 2 too. A checksum (PP2_TYPE_CRC32C) is ignored, as the
specification allows: TLS protects the bytes behind the header.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from tornado_status.errors import ProxyHeaderError
from tornado_status.model.records import normalise_ip

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
FIXED = 16  # bytes: signature, version and command, family, length of the rest
MAX_REST = 4096  # bytes; addresses take 36, and a client's certificate that some add about 1,000

_V1 = b"PROXY "
_LOCAL, _PROXY = 0x20, 0x21  # version 2 and the command
_TCP4, _TCP6 = 0x11, 0x21  # family and transport


@dataclass(frozen=True, slots=True)
class ProxiedAddress:
    """The client's address and port. Both are None if the proxy itself connects."""

    client_ip: str | None
    client_port: int | None


def looks_like_header(data: bytes) -> bool:
    """Return whether the first bytes of a connection are those of a header, of either version."""
    return bool(data) and (SIGNATURE.startswith(data) or data.startswith(_V1))


def check_beginning(data: bytes) -> None:
    """Raise `ProxyHeaderError` if `data`, the first bytes, cannot become a header."""
    begun = data[: len(SIGNATURE)]
    if SIGNATURE.startswith(begun):
        return
    if _V1.startswith(begun[: len(_V1)]):
        raise ProxyHeaderError(
            "proxy-v1", "PROXY protocol version 1; make the proxy send version 2 (send-proxy-v2)"
        )
    raise ProxyHeaderError("proxy-header-missing", "the connection begins without a PROXY header")


def rest_length(fixed: bytes) -> int:
    """Return how many bytes follow the first `FIXED` ones. Raises `ProxyHeaderError`."""
    check_beginning(fixed)
    version_and_command, length = fixed[12], int.from_bytes(fixed[14:16])
    if version_and_command not in (_LOCAL, _PROXY):
        raise _malformed(f"version and command {version_and_command:#04x}, expected 0x20 or 0x21")
    if length > MAX_REST:
        raise _malformed(f"{length} bytes, expected at most {MAX_REST}")
    return length


def parse(fixed: bytes, rest: bytes) -> ProxiedAddress:
    """Return the address in a whole header. Raises `ProxyHeaderError`.

    `rest` has the length that `rest_length` returned for `fixed`. Fields behind the addresses must
    fit into it; their values are ignored.
    """
    command, family = fixed[12], fixed[13]
    if command == _LOCAL:
        return ProxiedAddress(None, None)
    if family == _TCP4:
        address, ports, size = rest[:4], rest[8:12], 12
    elif family == _TCP6:
        address, ports, size = rest[:16], rest[32:36], 36
    else:
        raise ProxyHeaderError(
            "proxy-address-unknown", f"no TCP address of the client (family {family:#04x})"
        )
    if len(rest) < size:
        raise _malformed(f"addresses of {len(rest)} bytes, expected {size}")
    _check_fields(rest, size)
    client_port = int.from_bytes(ports[:2])
    if not client_port:
        raise _malformed("the client's port is 0")
    return ProxiedAddress(normalise_ip(str(ipaddress.ip_address(address))), client_port)


def _check_fields(rest: bytes, start: int) -> None:
    while start < len(rest):
        if start + 3 > len(rest):
            raise _malformed("a field is cut off")
        start += 3 + int.from_bytes(rest[start + 1 : start + 3])  # behind its type and length
        if start > len(rest):
            raise _malformed("a field is longer than the header")


def _malformed(what: str) -> ProxyHeaderError:
    return ProxyHeaderError("proxy-header-malformed", what)
