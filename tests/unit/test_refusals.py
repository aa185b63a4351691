"""Refusals cost no memory: no exception is kept and raised again."""

from __future__ import annotations

import base64
import contextlib
import datetime
import gc
import importlib
import pkgutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import certs_gen
import clients
import listeners
import tornado_status
from certs_gen.authority import Authority, Credential
from tornado_status.config.settings import IngressSettings
from tornado_status.errors import IdentityError
from tornado_status.ingress.behind_proxy.request_authentication import RequestAuthenticator
from tornado_status.ingress.refusals import Refusals
from tornado_status.ingress.trust import Trust
from tornado_status.ingress.trusted_proxies import TrustedProxies
from tornado_status.pki.crl import read_crls, replace_crls
from tornado_status.pki.trust_anchors import Anchors

REPEATS = 10_000
DAY_S = 86_400.0
PROXIED = IngressSettings.model_validate({"mode": "proxy", "trusted_proxies": ["127.0.0.2"]})
CA = Authority.create()
LEAF = CA.issue_client("a@example.com", days=2)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def der(credential: Credential) -> bytes:
    return credential.certificate.public_bytes(Encoding.DER)


@pytest.fixture(scope="module", autouse=True)
def others_frozen() -> Iterator[None]:
    """Count among what these tests make: a process that ran others before them has a lot more."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held() -> int:
    """Return how many tracebacks and frames are alive."""
    gc.collect()
    kinds = (types.TracebackType, types.FrameType)
    return sum(isinstance(each, kinds) for each in gc.get_objects())


def anchors(*revoked: int) -> Anchors:
    entries = [x509.RevokedCertificateBuilder(serial, now()).build() for serial in revoked]
    pem = CA.crl(entries, 2).public_bytes(Encoding.PEM)
    cas = (CA.certificate,)
    return Anchors(cas, replace_crls((), read_crls(pem, cas, now().timestamp()), cas))


def checked_anew(
    before: Anchors,
    chain: list[bytes],
    after: Anchors | None = None,
    ahead_s: float = 0.0,
    *,
    resumed: bool = False,
) -> Callable[[], str]:
    """Return a function that judges a certificate anew by the anchors `after`, `ahead_s` later."""
    trust = Trust(before, "refuse", clock=lambda: now().timestamp() + ahead_s)
    auth = trust.verify(chain, resumed=resumed)
    if after is not None:
        trust.replace(after)

    def check() -> str:
        trust.generation += 1
        refusal = trust.check(auth)
        return "" if refusal is None else refusal.reason

    return check


def forwarded(certificate: bytes | None, trusted: Anchors) -> Callable[[], str]:
    """Return a function that authenticates a request of a proxy."""
    authenticator = RequestAuthenticator(
        Trust(trusted),
        PROXIED,
        TrustedProxies(PROXIED.trusted_proxies),
        Refusals(),
    )
    headers = {"x-forwarded-for": ["10.0.0.7"]}
    if certificate is not None:
        headers["client-cert"] = [f":{base64.b64encode(certificate).decode()}:"]

    def authenticate() -> str:
        try:
            authenticator.check_in_of(lambda name: headers.get(name.lower(), []))
        except IdentityError as error:
            return error.reason
        return ""

    return authenticate


def renewed(*extensions: tuple[x509.ExtensionType, bool]) -> Anchors:
    """The CA with another certificate, which has these extensions and expires in a day."""
    certificate = CA.certify(
        CA.certificate.public_key(),
        CA.certificate.subject,
        [(x509.BasicConstraints(ca=True, path_length=None), True), *extensions],
        not_before=now() - datetime.timedelta(days=1),
        not_after=now() + datetime.timedelta(days=1),
    )
    return Anchors((certificate,))


ELSEWHERE = x509.NameConstraints(
    permitted_subtrees=[x509.RFC822Name("plant.example")], excluded_subtrees=None
)
PLAIN = Anchors((CA.certificate,))
KINDS: dict[str, Callable[[], Callable[[], str]]] = {
    "revoked": lambda: checked_anew(anchors(LEAF.certificate.serial_number), [der(LEAF)]),
    "expired": lambda: checked_anew(PLAIN, [der(LEAF)], ahead_s=3 * DAY_S),
    "crl-expired": lambda: checked_anew(
        anchors(), [der(CA.issue_client("a@example.com"))], ahead_s=40 * DAY_S
    ),
    "ca-changed": lambda: checked_anew(
        PLAIN, [der(LEAF)], Anchors((Authority.create().certificate,))
    ),
    "unknown-chain": lambda: checked_anew(
        Anchors((Authority.create().certificate,)), [der(LEAF)], resumed=True
    ),
    "name-constraints": lambda: checked_anew(renewed((ELSEWHERE, True)), [der(LEAF)]),
    "ca-expired": lambda: checked_anew(renewed(), [der(LEAF)], ahead_s=1.5 * DAY_S),
    "ca-unreadable": lambda: checked_anew(PLAIN, [der(LEAF), b"no certificate"]),
    "no-certificate": lambda: forwarded(None, PLAIN),
    "untrusted-chain": lambda: forwarded(
        der(Authority.create().issue_client("a@example.com")), PLAIN
    ),
    "stored": lambda: forwarded(der(LEAF), anchors(LEAF.certificate.serial_number)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_keeps_no_traceback(kind: str) -> None:
    """However often it is repeated: a traceback keeps its frames, and they keep their locals."""
    refuse = KINDS[kind]()
    expected = "revoked" if kind == "stored" else kind
    assert refuse() == expected
    before = held()
    for _ in range(REPEATS):
        assert refuse() == expected
    assert held() - before < REPEATS / 10


def test_an_exception_that_is_raised_again_would_be_noticed() -> None:
    """The negative control: one instance, raised each time."""
    kept = IdentityError(403, "kept", "An exception that lives on")
    before = held()
    for _ in range(REPEATS):
        with contextlib.suppress(IdentityError):
            raise kept
    assert held() - before >= REPEATS


@pytest.mark.parametrize(
    "package", [tornado_status, listeners, clients, certs_gen], ids=lambda package: package.__name__
)
def test_no_module_keeps_an_exception(package: types.ModuleType) -> None:
    """A constant is a value; whoever raises it makes an exception of it."""
    assert package.__file__ is not None
    folders = [str(Path(package.__file__).parent)]
    for found in pkgutil.walk_packages(folders, f"{package.__name__}."):
        if found.name.rpartition(".")[2] == "__main__" or ".migrations" in found.name:
            continue
        module = importlib.import_module(found.name)
        kept = [name for name, value in vars(module).items() if isinstance(value, BaseException)]
        assert not kept, found.name
