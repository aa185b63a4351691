"""E-mail addresses: validation, and one canonical spelling. No DNS."""

from __future__ import annotations

import unicodedata

import email_validator

MAX_COMMON_NAME = 64  # ub-common-name of X.520 (RFC 5280, appendix A): no CA may issue more


PRIVATE_DOMAINS = ("local", "test")


_ORDINARY_DOMAIN = "example"


def parse_email(text: str) -> str:
    """Return the canonical form of an e-mail address: lower case, ASCII (IDNA) domain.

    The local part is a dot-atom of RFC 5322. The domain has at least one dot, and may be a private
    one (`PRIVATE_DOMAINS`). Nothing is looked up in the DNS. The canonical form is its own
    canonical form, and fits in a common name too. Raises `ValueError` with a sentence.
    """
    _check_length(text)  # before anything works on it
    local, _, domain = text.rpartition("@")
    domain = domain.lower()
    stem, dot, last = domain.rpartition(".")
    # email-validator accepts only domains that mail can reach from anywhere. In a private network
    # .local is a name like any other, so only the rest of such a domain is validated.
    private = dot and last in PRIVATE_DOMAINS
    checked = f"{stem}.{_ORDINARY_DOMAIN}" if private else domain
    try:
        valid = email_validator.validate_email(
            f"{local}@{checked}",
            allow_smtputf8=False,
            allow_quoted_local=False,
            allow_domain_literal=False,
            check_deliverability=False,
        )
    except email_validator.EmailNotValidError as error:
        raise ValueError(f"not a valid e-mail address: {error}") from error
    # IDNA maps some characters onto others (a full-width dot onto a dot). Two spellings of one
    # name would be two certificates for one person, so only the letter case may differ. The
    # method lower() maps too (the Kelvin sign to a k), but text with that sign is not NFC.
    normal = unicodedata.is_normalized("NFC", text)
    if not normal or checked not in (valid.domain, valid.ascii_domain):
        raise ValueError("not a valid e-mail address: the domain is not in its normal form")
    ascii_domain = valid.ascii_domain
    if private:
        ascii_domain = ascii_domain.removesuffix(_ORDINARY_DOMAIN) + last
    canonical = f"{local}@{ascii_domain}".lower()
    _check_length(canonical)
    return canonical


def _check_length(address: str) -> None:
    if len(address) > MAX_COMMON_NAME:
        raise ValueError(
            f"an e-mail address of {len(address)} characters does not fit in a common name, "
            f"which holds at most {MAX_COMMON_NAME} (X.520)"
        )
