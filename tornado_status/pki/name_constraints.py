"""Name constraints: which names a CA may certify (RFC 5280, 4.2.1.10). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from tornado_status.pki.certificates import canonical_name
from tornado_status.pki.extensions import find_extension

MAX_COMPARISONS = 65_536  # of names with constraints, some milliseconds; OpenSSL has such a bound

Name = tuple[type[x509.GeneralName], Any]
"""The kind of a name, and its value in the one spelling that is compared."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """The constraints of one CA. A kind of name that none of `permitted` has is permitted."""

    permitted: tuple[Name, ...] = ()
    excluded: tuple[Name, ...] = ()

    def permits(self, names: Sequence[Name]) -> bool:
        """Return whether the CA may certify all these names."""
        if len(names) * (len(self.permitted) + len(self.excluded)) > MAX_COMPARISONS:
            return False
        return all(map(self._permits, names))

    def _permits(self, name: Name) -> bool:
        kind, value = name
        permitted = [of for other, of in self.permitted if other is kind]
        excluded = [of for other, of in self.excluded if other is kind]
        if not permitted and not excluded:
            return True
        within = _WITHIN.get(kind)
        if within is None:
            return False  # RFC 5280: process a constraint, or refuse the certificate
        if any(within(value, constraint) for constraint in excluded):
            return False
        return not permitted or any(within(value, constraint) for constraint in permitted)


def email_name(address: str) -> Name:
    """Return an e-mail address as a name."""
    return x509.RFC822Name, address.lower()


def read_constraints(extensions: x509.Extensions) -> Constraints:
    """Return the constraints of a CA's certificate."""
    found = find_extension(extensions, x509.NameConstraints)
    if found is None:
        return Constraints()
    return Constraints(
        tuple(map(_name, found.permitted_subtrees or ())),
        tuple(map(_name, found.excluded_subtrees or ())),
    )


def names_of(subject: x509.Name, extensions: x509.Extensions) -> tuple[Name, ...]:
    """Return all names that a certificate gives its subject."""
    names: list[Name] = []
    if subject.rdns:
        names.append((x509.DirectoryName, canonical_name(subject)))
    for attribute in subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
        names.append(email_name(str(attribute.value)))
    alternative = find_extension(extensions, x509.SubjectAlternativeName)
    return (*names, *map(_name, alternative or ()))


def _name(name: x509.GeneralName) -> Name:
    if isinstance(name, x509.DirectoryName):
        return x509.DirectoryName, canonical_name(name.value)
    value = name.value
    return type(name), value.lower() if isinstance(value, str) else value


def _email_within(email: str, constraint: str) -> bool:
    """Return whether an address is a mailbox, at a host, or below a `.domain`."""
    host = email.rpartition("@")[2]
    mailbox, at, of = constraint.rpartition("@")
    if mailbox:
        return email == constraint
    if at:
        return host == of  # "@example.com" is no address: OpenSSL reads it as the host
    return _host_within(host, constraint)


def _dns_within(host: str, constraint: str) -> bool:
    return _host_within(host, constraint) or host.endswith(f".{constraint}")


def _uri_within(uri: str, constraint: str) -> bool:
    try:
        return _host_within(urlsplit(uri).hostname or "", constraint)
    except ValueError:
        return False


def _host_within(host: str, constraint: str) -> bool:
    """Return whether a host is the constraint, or below it if that begins with a dot.

    An empty constraint includes all names, as in the libraries of browsers.
    """
    if constraint.startswith("."):
        return host.endswith(constraint)
    return not constraint or host == constraint


def _ip_within(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    constraint: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> bool:
    return address in constraint


def _directory_within(name: list[object], constraint: list[object]) -> bool:
    return name[: len(constraint)] == constraint


_WITHIN: dict[type[x509.GeneralName], Callable[[Any, Any], bool]] = {
    x509.RFC822Name: _email_within,
    x509.DNSName: _dns_within,
    x509.UniformResourceIdentifier: _uri_within,
    x509.IPAddress: _ip_within,
    x509.DirectoryName: _directory_within,
}
