"""The identity in a certificate: the rules for its name, its agreement and its purpose.

Pure: certificates are bytes here. test_hostile_certificates tests what TLS makes of them first.
"""

from __future__ import annotations

import datetime
import unicodedata
from typing import Any

import idna
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from certs_gen.authority import common_name, leaf_extensions
from tests.support.der import (
    BIT_STRING,
    BMP,
    BOOLEAN,
    CLIENT_AUTH,
    FOR_CLIENTS,
    GENERALIZED_TIME,
    IA5,
    INTEGER,
    KEY,
    NOT_AFTER,
    NOT_BEFORE,
    PLAIN,
    PRINTABLE,
    SEQUENCE,
    SET,
    TELETEX,
    UTC_TIME,
    UTF8,
    VALID,
    VERSION,
    alternative_names,
    certificate,
    content,
    elements,
    extension,
    name,
    odd,
    oid,
    tlv,
    with_extensions,
)
from tornado_status.errors import IdentityError
from tornado_status.model.email_address import MAX_COMMON_NAME, parse_email
from tornado_status.pki.identity import MAX_ISSUER, Identity, identify

SENTENCE = "CN must be a valid email address"
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
ANY_PURPOSE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE

# ------------------------------------------------------------------------------------ addresses

LONGEST = f"{'a' * 52}@example.com"
assert len(LONGEST) == 64

ACCEPTED = [
    pytest.param("valid_user@example.com", "valid_user@example.com", id="as it is"),
    pytest.param("Valid_User@Example.COM", "valid_user@example.com", id="case"),
    pytest.param("user+device.7@example.com", "user+device.7@example.com", id="plus tag"),
    pytest.param("!#$%&'*+-/=?^_`{|}~@a.com", "!#$%&'*+-/=?^_`{|}~@a.com", id="all of atext"),
    pytest.param("u@bücher.example", "u@xn--bcher-kva.example", id="U-label"),
    pytest.param("u@BÜCHER.example", "u@xn--bcher-kva.example", id="U-label, case"),
    pytest.param("u@xn--bcher-kva.example", "u@xn--bcher-kva.example", id="A-label"),
    pytest.param("u@XN--BCHER-KVA.Example", "u@xn--bcher-kva.example", id="A-label, case"),
    pytest.param("u@почта.рф", "u@xn--80a1acny.xn--p1ai", id="U-labels throughout"),
    pytest.param("device@plant.local", "device@plant.local", id=".local"),
    pytest.param("Device@Plant.LOCAL", "device@plant.local", id=".local, case"),
    pytest.param("device@halle.süd.local", "device@halle.xn--sd-xka.local", id=".local, U-label"),
    pytest.param("device@lab.test", "device@lab.test", id=".test"),
    pytest.param("u@10.example.com", "u@10.example.com", id="a label of digits"),
    pytest.param("u@a-b--c.example.com", "u@a-b--c.example.com", id="hyphens"),
    pytest.param(LONGEST, LONGEST, id="64 characters"),
]


@pytest.mark.parametrize(("text", "canonical"), ACCEPTED)
def test_an_address_has_one_canonical_spelling(text: str, canonical: str) -> None:
    """Lower case and the domain in ASCII, whichever way it was typed."""
    assert parse_email(text) == canonical
    assert parse_email(canonical) == canonical


REFUSED = {
    "empty": "",
    "no @": "valid_user.example.com",
    "two @": "valid@user@example.com",
    "nothing before the @": "@example.com",
    "nothing after the @": "valid_user@",
    "leading space": " valid_user@example.com",
    "trailing space": "valid_user@example.com ",
    "space inside": "valid user@example.com",
    "NUL": "valid_user\0@example.com",
    "NUL before another domain": "valid_user@example.com\0.evil.org",
    "trailing CR": "valid_user@example.com\r",
    "trailing LF": "valid_user@example.com\n",
    "CR LF and a forged line": "valid_user@example.com\r\nX-Forged: 1",
    "LF in the local part": "valid\nuser@example.com",
    "tab": "valid\tuser@example.com",
    "DEL": "valid_user\x7f@example.com",
    "escape sequence": "\x1b[2Jvalid_user@example.com",
    "line separator": "valid_user@example.com\u2028",
    "right-to-left override in the local part": "\u202evalid_user@example.com",
    "right-to-left override in the domain": "valid_user@\u202eexample.com",
    "right-to-left mark in the local part": "valid\u200fuser@example.com",
    "right-to-left mark in the domain": "valid_user@example\u200f.com",
    "zero-width space in the local part": "valid\u200buser@example.com",
    "zero-width space in the domain": "valid_user@exam\u200bple.com",
    "zero-width joiner": "valid_user@exam\u200dple.com",
    "zero-width non-joiner": "valid_user@exam\u200cple.com",
    "byte order mark": "\ufeffvalid_user@example.com",
    "soft hyphen": "valid_user@exam\u00adple.com",
    "lone surrogate": "valid_user@exam\ud800ple.com",
    "full-width letter in the local part": "\uff56alid_user@example.com",
    "full-width letter in the domain": "valid_user@\uff45xample.com",
    "full-width @": "valid_user\uff20example.com",
    "full-width dot": "valid_user@example\uff0ecom",
    "ideographic dot": "valid_user@example\u3002com",
    "half-width ideographic dot": "valid_user@example\uff61com",
    "ligature": "u@\ufb01sh.com",
    "Kelvin sign": "u@\u212aelvin.com",
    "Angstrom sign": "u@\u212bngstrom.com",
    "Ohm sign": "u@\u2126.com",
    "domain not composed": "u@cafe\u0301.com",
    "symbol in the domain": "u@\u2603.com",
    "A-label of nothing": "u@xn--a.com",
    "non-ASCII local part": "jö@example.com",
    "quoted local part": '"valid_user"@example.com',
    "quoted space": '"valid user"@example.com',
    "backslash": "valid\\user@example.com",
    "domain literal": "valid_user@[127.0.0.1]",
    "IPv6 domain literal": "valid_user@[IPv6:::1]",
    "IP address as the domain": "valid_user@127.0.0.1",
    "single-label domain": "valid_user@localhost",
    "a private domain alone": "valid_user@local",
    "a private domain after a dot": "valid_user@.local",
    "numeric top-level domain": "valid_user@example.1",
    "trailing dot": "valid_user@example.com.",
    "double dot in the domain": "valid_user@example..com",
    "double dot before a private domain": "valid_user@plant..local",
    "double dot in the local part": "valid..user@example.com",
    "leading dot": ".valid_user@example.com",
    "dot before the @": "valid_user.@example.com",
    "hyphen before a label": "valid_user@-example.com",
    "hyphen behind a label": "valid_user@example-.com",
    "underscore in the domain": "valid_user@ex_ample.com",
    "label of 64": f"u@{'a' * 58}.{'b' * 64}.com",
    "65 characters": f"a{LONGEST}",
    "65 characters in ASCII": f"x@{'日本語' * 15}.jp",
    "display name": "Valid User <valid_user@example.com>",
    "angle brackets": "<valid_user@example.com>",
    "comment": "valid_user@example.com (Valid)",
    "list": "valid_user@example.com, other@example.com",
    "scheme": "mailto:valid_user@example.com",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_address_is_refused_in_a_sentence(text: str) -> None:
    """One printable line, for whoever issues certificates."""
    with pytest.raises(ValueError, match="e-mail") as caught:
        parse_email(text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_text_of_any_length_is_refused_by_its_length() -> None:
    """Before anything works on it: a certificate has room for a great many characters."""
    with pytest.raises(ValueError, match="of 100000 characters does not fit in a common name"):
        parse_email("@" * 100_000)


# Hostile on purpose: surrogates, controls, and what normalisation turns into something else.
CHARACTERS = st.one_of(
    st.characters(),
    st.sampled_from('aZ09.@-_+"\\ \t\r\n\0\x7f\u00ad\u200b\u200f\u202e\u212a\uff0e\uff20\u3002'),
)
ANY_TEXT = st.text(CHARACTERS, max_size=80)
LABELS = st.one_of(
    st.from_regex(r"[A-Za-z0-9-]{1,20}", fullmatch=True),
    st.text(st.characters(categories=["L", "M", "N"]), min_size=1, max_size=12),
    st.text(CHARACTERS, max_size=8),
)
LOCAL_PARTS = st.one_of(
    st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,40}", fullmatch=True),
    st.text(CHARACTERS, max_size=12),
)
ENDS = st.sampled_from(
    ["com", "example.com", "local", "TEST", "рф", "xn--p1ai", "\u212aom", "1", ""]
)
NEAR_ADDRESSES = st.builds("{}@{}.{}".format, LOCAL_PARTS, LABELS, ENDS)


@settings(deadline=None)
@given(text=st.one_of(ANY_TEXT, NEAR_ADDRESSES))
@example(text="u@\u0130\u0130.com")
@example(text=f"{'u' * 55}@ЯЯЯ.рф")
def test_any_text_has_a_canonical_form_or_is_refused(text: str) -> None:
    """The form is harmless wherever it is written, fits in a common name, and is its own form."""
    try:
        canonical = parse_email(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
        return
    assert canonical.isascii()
    assert canonical == canonical.lower()
    assert canonical.isprintable()
    assert not set(canonical) & set(" \"'\\") - {"'"}
    assert canonical.count("@") == 1
    assert len(canonical) <= MAX_COMMON_NAME
    assert parse_email(canonical) == canonical


@settings(deadline=None)
@given(text=st.one_of(ANY_TEXT, NEAR_ADDRESSES))
@example(text="u@\u212aelvin.com")
@example(text="u@BÜCHER.example")
def test_only_the_letter_case_and_the_form_of_the_domain_may_differ(text: str) -> None:
    """Two spellings of one name would be two certificates for one person."""
    try:
        canonical = parse_email(text)
    except ValueError:
        return
    local, _, domain = canonical.partition("@")
    assert text.lower() in (canonical, f"{local}@{idna.decode(domain)}")
    assert unicodedata.is_normalized("NFC", text)


# ------------------------------------------------------------------------------- bytes of X.509


def refusal(der: bytes) -> tuple[int, str, str]:
    with pytest.raises(IdentityError) as caught:
        identify(der)
    return caught.value.status, caught.value.reason, caught.value.detail


def test_the_bytes_of_these_tests_are_those_of_the_library() -> None:
    """Taken apart and put together again by hand it is the same certificate."""
    assert odd() == PLAIN
    by_hand = odd(subject=name((UTF8, VALID.encode())), extensions=with_extensions(FOR_CLIENTS))
    only = [(x509.ExtendedKeyUsage([CLIENT_AUTH]), False)]
    body_by_hand, body = (
        next(elements(content(der))) for der in (by_hand, certificate(VALID, only))
    )
    assert body_by_hand == body


# ------------------------------------------------------------------------------------- the name


def test_an_identity_is_what_the_certificate_says() -> None:
    """The e-mail, the device by issuer and serial number, and the dates in seconds."""
    issuer = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Plant, Inc."),
            x509.NameAttribute(NameOID.COMMON_NAME, "Plant CA"),
        ]
    )
    assert identify(
        certificate("Valid_User@Example.com", issuer=issuer, serial=0xAB0C)
    ) == Identity(
        email=VALID,
        issuer=r"CN=Plant CA,O=Plant\, Inc.",
        serial="ab0c",
        not_before=NOT_BEFORE.timestamp(),
        not_after=NOT_AFTER.timestamp(),
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        pytest.param([], "cn-count", id="none"),
        pytest.param([(UTF8, VALID.encode())] * 2, "cn-count", id="the same twice"),
        pytest.param([(UTF8, VALID.encode()), (UTF8, b"")], "cn-count", id="a second, empty"),
        pytest.param([(UTF8, b"x"), (UTF8, VALID.encode())], "cn-count", id="the second valid"),
        pytest.param([(UTF8, b"")], "cn-invalid", id="empty"),
        pytest.param([(UTF8, b"not_an_email")], "cn-invalid", id="no e-mail"),
        pytest.param([(UTF8, VALID.encode() + b"\0")], "cn-invalid", id="NUL"),
        pytest.param([(UTF8, VALID.encode() + b"\r\n")], "cn-invalid", id="CR LF"),
        pytest.param([(UTF8, "\u202e".encode() + VALID.encode())], "cn-invalid", id="RTL"),
        pytest.param([(UTF8, b"a" + LONGEST.encode())], "cn-invalid", id="65 characters"),
        pytest.param([(UTF8, b"a" * 70_000)], "cn-invalid", id="70,000 characters"),
        pytest.param([(UTF8, b"\xff@example.com")], "certificate-unreadable", id="no UTF-8"),
        pytest.param([(BMP, VALID.encode()[1:])], "certificate-unreadable", id="half a character"),
        pytest.param([(BMP, b"\xd8\x00\x00@")], "certificate-unreadable", id="half a pair"),
        pytest.param([(PRINTABLE, VALID.encode())], "certificate-unreadable", id="@ not printable"),
        pytest.param([(BIT_STRING, b"\0" + VALID.encode())], "certificate-unreadable", id="bits"),
        pytest.param([(BOOLEAN, b"\xff")], "certificate-unreadable", id="a boolean"),
        pytest.param([(SEQUENCE, b"")], "certificate-unreadable", id="a sequence"),
    ],
)
def test_a_subject_without_exactly_one_valid_e_mail_gets_the_sentence(
    names: list[tuple[int, bytes]], reason: str
) -> None:
    """For each mistake the client is told what a CN must be."""
    assert refusal(odd(subject=name(*names))) == (400, reason, SENTENCE)


@pytest.mark.parametrize(
    ("kind", "value", "email"),
    [
        pytest.param(UTF8, VALID.encode(), VALID, id="UTF8String"),
        pytest.param(IA5, VALID.encode(), VALID, id="IA5String"),
        pytest.param(TELETEX, VALID.encode(), VALID, id="TeletexString"),
        pytest.param(BMP, VALID.encode("utf-16-be"), VALID, id="BMPString"),
        pytest.param(
            BMP, "u@bücher.example".encode("utf-16-be"), "u@xn--bcher-kva.example", id="BMP U-label"
        ),
    ],
)
def test_the_string_type_of_the_cn_does_not_matter(kind: int, value: bytes, email: str) -> None:
    """Certificates of old and of other software say the same name in other types."""
    assert identify(odd(subject=name((kind, value)))).email == email


def test_other_attributes_of_the_subject_do_not_matter() -> None:
    """Neither an organisation, nor a bad country, nor an e-mail that is no CN."""
    rest = content(x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "x@y.org")]).public_bytes())
    country = tlv(SET, tlv(SEQUENCE, oid(NameOID.COUNTRY_NAME), tlv(PRINTABLE, b"Atlantis")))
    subject = tlv(SEQUENCE, country, content(name((UTF8, VALID.encode()))), rest)
    assert identify(odd(subject=subject)).email == VALID


def test_a_multi_valued_name_with_two_cns_has_two_cns() -> None:
    """Not only names one after the other count, but also those side by side in one set."""
    kind = oid(NameOID.COMMON_NAME)
    values = [tlv(SEQUENCE, kind, tlv(UTF8, text)) for text in (b"a@example.com", VALID.encode())]
    assert refusal(odd(subject=tlv(SEQUENCE, tlv(SET, *values))))[1] == "cn-count"
    assert identify(odd(subject=tlv(SEQUENCE, tlv(SET, *values[1:])))).email == VALID


COMMON_NAMES = st.one_of(
    st.sampled_from([VALID, VALID.upper(), "a@bücher.example", "", "not_an_email"]),
    NEAR_ADDRESSES,
    ANY_TEXT,
).map(lambda text: text.encode("utf-8", "replace"))
SAN_EMAILS = st.one_of(
    st.sampled_from([VALID, VALID.title(), "a@xn--bcher-kva.example", "", "b@example.com"]),
    st.text(st.characters(max_codepoint=0x7F), max_size=40),
).map(str.encode)


@settings(deadline=None)
@given(
    common_names=st.one_of(st.lists(COMMON_NAMES, max_size=3), COMMON_NAMES.map(lambda one: [one])),
    emails=st.none() | st.lists(SAN_EMAILS, max_size=3),
)
@example(common_names=[VALID.encode()], emails=[VALID.upper().encode()])
@example(common_names=[VALID.encode()], emails=[VALID.encode(), b"b@example.com"])
@example(common_names=[VALID.encode()] * 2, emails=[VALID.encode()])
def test_only_one_valid_cn_whose_alternative_names_agree_is_an_identity(
    common_names: list[bytes], emails: list[bytes] | None
) -> None:
    """For any names: accepted as exactly that e-mail, or refused for the first rule that fails."""

    def canonical(text: bytes) -> str | None:
        try:
            return parse_email(text.decode())
        except ValueError:
            return None

    extensions = [FOR_CLIENTS, *([] if emails is None else [alternative_names(*emails)])]
    der = odd(
        subject=name(*((UTF8, common_name) for common_name in common_names)),
        extensions=with_extensions(*extensions),
    )
    valid = canonical(common_names[0]) if len(common_names) == 1 else None
    if valid is None:
        status, _, detail = refusal(der)
        assert (status, detail) == (400, SENTENCE)
    elif any(canonical(email) != valid for email in emails or ()):
        assert refusal(der)[:2] == (400, "san-mismatch")
    else:
        assert identify(der).email == valid


# ------------------------------------------------------------------- alternative names, purpose

USUAL: list[tuple[x509.ExtensionType, bool]] = leaf_extensions([CLIENT_AUTH])
OTHER_NAMES: list[x509.GeneralName] = [
    x509.DNSName("example.com"),
    x509.UniformResourceIdentifier("mailto:b@example.com"),
    x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.9"), b"\x0c\x0db@example.com"),
    x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
    x509.DirectoryName(common_name("b@example.com")),
]


def for_clients(*names: x509.GeneralName) -> list[tuple[x509.ExtensionType, bool]]:
    return leaf_extensions([CLIENT_AUTH], names)


def purposes(*oids: x509.ObjectIdentifier) -> list[tuple[x509.ExtensionType, bool]]:
    return [(x509.ExtendedKeyUsage(oids), False)]


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param(for_clients(), id="no alternative name"),
        pytest.param(for_clients(*OTHER_NAMES), id="other kinds of names"),
        pytest.param(for_clients(x509.RFC822Name(VALID)), id="the same"),
        pytest.param(for_clients(x509.RFC822Name("VALID_USER@Example.COM")), id="another case"),
        pytest.param(for_clients(*OTHER_NAMES, x509.RFC822Name(VALID)), id="the same among others"),
        pytest.param(for_clients(*[x509.RFC822Name(VALID)] * 2), id="twice"),
        pytest.param(purposes(CLIENT_AUTH), id="nothing but the purpose"),
        pytest.param(purposes(SERVER_AUTH, CLIENT_AUTH), id="a purpose among others"),
        pytest.param(purposes(ANY_PURPOSE, CLIENT_AUTH), id="any purpose, and clients by name"),
    ],
)
def test_a_certificate_for_clients_is_accepted(
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> None:
    """The purpose is there, and no e-mail that says otherwise."""
    assert identify(certificate(extensions=extensions)).email == VALID


CA: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(True, None), True)]
DISAGREES = (400, "san-mismatch", "The e-mail in subjectAltName must agree with the CN")
IS_CA = (403, "is-ca", "A CA certificate is not accepted as a client")
NOT_FOR_CLIENTS = (
    403,
    "not-for-clients",
    "The certificate is not meant for TLS clients (extended key usage clientAuth)",
)
OTHERWISE_WRONG = [
    pytest.param(for_clients(x509.RFC822Name("b@example.com")), DISAGREES, id="another e-mail"),
    pytest.param(
        for_clients(x509.RFC822Name(VALID), x509.RFC822Name("b@example.com")),
        DISAGREES,
        id="one of two e-mails disagrees",
    ),
    pytest.param(for_clients(x509.RFC822Name("nobody")), DISAGREES, id="no e-mail"),
    pytest.param(
        leaf_extensions([SERVER_AUTH], [x509.RFC822Name("b@example.com")]),
        DISAGREES,
        id="disagreement is judged before the purpose",
    ),
    pytest.param([*CA, *purposes(CLIENT_AUTH)], IS_CA, id="a CA"),
    pytest.param(CA, IS_CA, id="a CA without a purpose"),
    pytest.param(purposes(SERVER_AUTH), NOT_FOR_CLIENTS, id="for servers only"),
    pytest.param(purposes(ANY_PURPOSE), NOT_FOR_CLIENTS, id="for any purpose"),
    pytest.param(purposes(ExtendedKeyUsageOID.EMAIL_PROTECTION), NOT_FOR_CLIENTS, id="for mail"),
    pytest.param(USUAL[:2], NOT_FOR_CLIENTS, id="no purpose"),
    pytest.param([], NOT_FOR_CLIENTS, id="no extensions at all"),
]


@pytest.mark.parametrize(("extensions", "expected"), OTHERWISE_WRONG)
def test_every_other_refusal_has_its_own_reason(
    extensions: list[tuple[x509.ExtensionType, bool]], expected: tuple[int, str, str]
) -> None:
    """A holder with a good name learns what else is wrong with the certificate."""
    assert refusal(certificate(extensions=extensions)) == expected


@pytest.mark.parametrize(("extensions", "_"), OTHERWISE_WRONG)
def test_a_bad_name_is_said_first(
    extensions: list[tuple[x509.ExtensionType, bool]], _: object
) -> None:
    """The answer is the sentence about the CN, with any other mistake in the certificate."""
    assert refusal(certificate("not_an_email", extensions)) == (400, "cn-invalid", SENTENCE)


# ----------------------------------------------------------------------------- malformed, hostile

MALFORMED = (
    400,
    "certificate-malformed",
    "The issuer, the dates or the extensions of the certificate cannot be read",
)
X400_ADDRESS = extension(
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME, tlv(SEQUENCE, tlv(0xA3, tlv(SEQUENCE)))
)


@pytest.mark.parametrize(
    "replaced",
    [
        pytest.param({"extensions": with_extensions(FOR_CLIENTS, FOR_CLIENTS)}, id="duplicates"),
        pytest.param(
            {"extensions": with_extensions(FOR_CLIENTS, *[alternative_names(VALID.encode())] * 2)},
            id="two alternative names",
        ),
        pytest.param(
            {"extensions": with_extensions(FOR_CLIENTS, alternative_names(b"\xff"))},
            id="an e-mail that is not ASCII",
        ),
        pytest.param({"extensions": with_extensions(FOR_CLIENTS, X400_ADDRESS)}, id="X.400"),
        pytest.param(
            {"extensions": with_extensions(extension(ExtensionOID.EXTENDED_KEY_USAGE, b"\x30"))},
            id="cut off",
        ),
        pytest.param({"issuer": name((UTF8, b"\xff"))}, id="issuer is no UTF-8"),
        pytest.param({"issuer": name((BIT_STRING, b"\0\0"))}, id="issuer of bits"),
    ],
)
def test_what_cannot_be_read_beside_a_good_name_has_its_own_reason(
    replaced: dict[str, bytes],
) -> None:
    """The name is in order, so the answer does not blame it; with a bad one, it still does."""
    assert refusal(odd(**replaced)) == MALFORMED
    bad = name((UTF8, b"not_an_email"))
    assert refusal(odd(**replaced, subject=bad)) == (400, "cn-invalid", SENTENCE)


@pytest.mark.parametrize("version", [b"\x03", b"\x05", b"\x7f", b"\xff", b"\x01\x00", b"\x00" * 9])
def test_a_certificate_of_no_known_version_is_refused(version: bytes) -> None:
    """Not an error that ends the connection without a word."""
    der = odd(version=tlv(VERSION, tlv(INTEGER, version)))
    assert refusal(der) == (400, "certificate-unreadable", SENTENCE)


@pytest.mark.parametrize(
    ("octets", "serial"),
    [
        pytest.param(b"\x7f" + b"\xff" * 19, "7f" + "ff" * 19, id="the 20 octets of RFC 5280"),
        pytest.param(b"\x7f" * 2000, "7f" * 32, id="2,000 octets, cut at MAX_SERIAL"),
        pytest.param(b"\0", "0", id="zero"),
        pytest.param(b"\xff", "-1", id="negative"),
    ],
)
def test_any_serial_number_names_a_device(octets: bytes, serial: str) -> None:
    """Home-made CAs number as they like."""
    assert identify(odd(serial=tlv(INTEGER, octets))).serial == serial


def test_the_widest_dates_are_dates() -> None:
    """From the first year to the last that X.509 can write (RFC 5280, 4.1.2.5)."""
    first, last = b"00010101000000Z", b"99991231235959Z"
    validity = tlv(SEQUENCE, tlv(GENERALIZED_TIME, first), tlv(GENERALIZED_TIME, last))
    identity = identify(odd(validity=validity))
    assert (identity.not_before, identity.not_after) == (-62135596800.0, 253402300799.0)


@pytest.mark.parametrize("moment", [b"00000101000000Z", b"20260230000000Z", b"", b"2026", b"\xff"])
def test_dates_that_are_none_are_refused(moment: bytes) -> None:
    """The year 0 and the 30th of February."""
    for kind in (UTC_TIME, GENERALIZED_TIME):
        der = odd(validity=tlv(SEQUENCE, *[tlv(kind, moment)] * 2))
        assert refusal(der) in (MALFORMED, (400, "certificate-unreadable", SENTENCE))


def judged(der: bytes) -> Identity | None:
    """Judge any bytes. An accepted certificate has an identity; a refused one, a sentence why."""
    try:
        identity = identify(der)
    except IdentityError as error:
        assert error.status in (400, 403)
        assert error.detail.isprintable()
        return None
    assert parse_email(identity.email) == identity.email
    # PostgreSQL stores no NUL in a text, and a record keeps no more than so much of a name.
    assert "\0" not in identity.issuer
    assert len(identity.issuer) <= MAX_ISSUER
    identity.issuer.encode()
    return identity


@settings(deadline=None)
@given(der=st.binary(max_size=2000))
@example(der=b"")
@example(der=PLAIN[:-1])
@example(der=PLAIN + b"\0")
@example(der=b"-----BEGIN CERTIFICATE-----")
@example(der=tlv(SEQUENCE))
@example(der=b"\x30\x84\xff\xff\xff\xff")
@example(der=b"\x30\x80" * 5000)
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    """There is no name in them, so the answer is the sentence about it."""
    assert refusal(der) == (400, "certificate-unreadable", SENTENCE)


RICH = certificate(
    x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Plant"),
            x509.NameAttribute(NameOID.COMMON_NAME, VALID),
        ]
    ),
    [
        *for_clients(x509.RFC822Name(VALID), *OTHER_NAMES),
        (x509.SubjectKeyIdentifier.from_public_key(KEY.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(KEY.public_key()), False),
        (x509.NameConstraints([x509.RFC822Name("example.com")], None), True),
    ],
)


def test_no_flipped_bit_of_a_certificate_is_an_error_of_ours() -> None:
    """Each bit of a certificate with everything in it, one after the other."""
    assert judged(RICH) is not None
    for bit in range(8 * len(RICH)):
        flipped = bytearray(RICH)
        flipped[bit // 8] ^= 1 << bit % 8
        judged(bytes(flipped))


@settings(deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 255)), min_size=1, max_size=6
    )
)
def test_no_changed_bytes_of_a_certificate_are_an_error_of_ours(
    changes: list[tuple[int, int]],
) -> None:
    """Several at a time, to any value."""
    changed = bytearray(RICH)
    for position, octet in changes:
        changed[position] = octet
    judged(bytes(changed))


EXTENSION_KINDS = st.sampled_from(
    [kind for kind in vars(ExtensionOID).values() if isinstance(kind, x509.ObjectIdentifier)]
)
DER = st.recursive(
    st.builds(tlv, st.integers(0, 255), st.binary(max_size=20)),
    lambda inner: st.builds(
        lambda tag, children: tlv(tag, *children), st.integers(0, 255), st.lists(inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(extensions=st.lists(st.tuples(EXTENSION_KINDS, DER | st.binary(max_size=40)), max_size=3))
def test_no_extension_is_an_error_of_ours(
    extensions: list[tuple[x509.ObjectIdentifier, bytes]],
) -> None:
    """Any bytes in any extension that is known."""
    encoded = [extension(kind, value) for kind, value in extensions]
    judged(odd(extensions=with_extensions(FOR_CLIENTS, *encoded)))


ATTRIBUTE_KINDS = st.sampled_from(
    [kind for kind in vars(NameOID).values() if isinstance(kind, x509.ObjectIdentifier)]
)
VALUES = st.one_of(
    st.tuples(st.just(UTF8), st.text(max_size=700).map(str.encode)),
    st.tuples(st.just(BMP), st.text(max_size=20).map(lambda text: text.encode("utf-16-be"))),
    st.tuples(st.integers(0, 255), st.binary(max_size=20)),
)


@settings(deadline=None)
@given(attributes=st.lists(st.tuples(ATTRIBUTE_KINDS, VALUES), max_size=4))
@example(attributes=[(NameOID.COMMON_NAME, (UTF8, b"Evil\0CA"))])
@example(attributes=[(NameOID.COMMON_NAME, (UTF8, b"\0" * 2000))])
@example(attributes=[(NameOID.COMMON_NAME, (BIT_STRING, b"\0\0"))])
@example(attributes=[(NameOID.X500_UNIQUE_IDENTIFIER, (BIT_STRING, b"\0\0"))])
@example(attributes=[(NameOID.COUNTRY_NAME, (UTF8, b""))])
def test_no_issuer_is_an_error_of_ours(
    attributes: list[tuple[x509.ObjectIdentifier, tuple[int, bytes]]],
) -> None:
    """Any attributes, of any type, with any bytes: what is kept of it can be stored."""
    sets = [tlv(SET, tlv(SEQUENCE, oid(kind), tlv(*value))) for kind, value in attributes]
    judged(odd(issuer=tlv(SEQUENCE, *sets)))


def test_judging_a_certificate_says_nothing_on_standard_error(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """The library warns of odd certificates; a peer could fill the log with it."""
    odd_ones: list[dict[str, Any]] = [
        {"serial": tlv(INTEGER, b"\0")},
        {"subject": name((UTF8, b""))},
        {"issuer": name((UTF8, b"x" * 300))},
    ]
    for replaced in odd_ones:
        judged(odd(**replaced))
    assert not recwarn.list


# ------------------------------------------------------------------------------------- strength


def issued(public_key: object) -> bytes:
    """A client certificate with any key."""
    ca = rsa.generate_private_key(65537, 2048)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a@example.com")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")]))
        .public_key(public_key)  # type: ignore[arg-type] # any kind: that is the point
        .serial_number(1)
        .not_valid_before(datetime.datetime(2026, 1, 1))
        .not_valid_after(datetime.datetime(2027, 1, 1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    certificate = builder.sign(ca, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


def test_weak_keys_and_signatures_are_refused() -> None:
    """Each with its own reason; the same certificate with a strong one is accepted."""
    strong = rsa.generate_private_key(65537, 2048).public_key()
    weak = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505 - that is the point
    assert identify(issued(strong)).email == "a@example.com"
    for der, reason in (
        (issued(weak), "weak-key"),
        (issued(dsa.generate_private_key(2048).public_key()), "weak-key"),
        (sha1_signed(issued(strong)), "weak-signature"),
    ):
        with pytest.raises(IdentityError) as caught:
            identify(der)
        assert (caught.value.status, caught.value.reason) == (403, reason)


def sha1_signed(der: bytes) -> bytes:
    """Name SHA-1 where SHA-256 was: only the name of the algorithm is judged here."""
    sha256, sha1 = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    assert der.count(sha256) == 2
    return der.replace(sha256, sha1)
