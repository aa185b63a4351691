"""Extensions of certificates: finding one, and refusing critical ones that are unknown. Pure."""

from __future__ import annotations

from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from tornado_status.errors import Refusal

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

# Critical extensions that are checked, or that cannot make a difference: policies have no effect
# without policy constraints, and CRLs come from a file.
_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.POLICY_MAPPINGS,
        ExtensionOID.INHIBIT_ANY_POLICY,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
    }
)


def find_extension(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    """Return an extension, None if it is not there."""
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def unknown_extension(extensions: x509.Extensions) -> Refusal | None:
    """Return why a certificate is refused that has a critical extension of unknown meaning."""
    for extension in extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            name = extension.oid.dotted_string
            return Refusal(
                403, "unknown-extension", f"The critical extension {name} is not understood"
            )
    return None
