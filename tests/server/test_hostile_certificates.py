"""Certificates of every kind over real mTLS: who gets in as whom, and what all others are told.

In TLS 1.3 the client's handshake is done before the server has seen its certificate. A rejection
arrives with the first read after it.
"""

from __future__ import annotations

import datetime
import http.client
import json
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs_gen.authority import (
    Authority,
    Extension,
    PrivateKey,
    common_name,
    leaf_extensions,
)
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Answer,
    Heard,
    Server,
    StartServer,
    exchange,
    require,
    rows,
    running_server,
    wait_until,
)
from tests.support.metrics import refused
from tests.support.with_constants import LINGER_S

SENTENCE = "CN must be a valid email address"
VALID = "valid_user@example.com"
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
DAY = datetime.timedelta(days=1)
ATTEMPTS = 20  # a reset overtook the alert in 3 of 10 before the server lingered

KEY = ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True, slots=True)
class Client:
    """A client's certificate, the part of the chain that it sends, and its key."""

    chain: Sequence[x509.Certificate]
    key: PrivateKey = KEY

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]


Make = Callable[[Authority], Client]


@pytest.fixture(scope="module")
def authority(certs: Path) -> Authority:
    """The CA that the server trusts."""
    return Authority.load(certs)


@pytest.fixture(scope="module")
def server(
    certs: Path, postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all of them: what one client does must not matter to the next."""
    rows(postgres, "CREATE DATABASE hostile_certificates")
    url = postgres.replace("/postgres?", "/hostile_certificates?")
    with running_server(tmp_path_factory.mktemp("hostile"), certs, url) as server:
        yield server


@pytest.fixture
def context_of(certs: Path, tmp_path: Path) -> Callable[[Client], ssl.SSLContext]:
    def context_of(client: Client) -> ssl.SSLContext:
        path = tmp_path / "client.pem"
        pem = client.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for certificate in client.chain:
            pem += certificate.public_bytes(serialization.Encoding.PEM)
        path.write_bytes(pem)
        context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        context.load_cert_chain(path)
        return context

    return context_of


def issued(
    subject: x509.Name | str = VALID,
    extensions: Sequence[Extension] | None = None,
    *,
    start: datetime.timedelta = -DAY,
    end: datetime.timedelta = DAY,
    key: Callable[[], PrivateKey] = lambda: KEY,
) -> Make:
    """A certificate of the trusted CA, for clients and valid today unless told otherwise."""

    def make(authority: Authority) -> Client:
        now = datetime.datetime.now(datetime.UTC)
        private = key()
        leaf = authority.certify(
            private.public_key(),
            common_name(subject) if isinstance(subject, str) else subject,
            leaf_extensions([CLIENT_AUTH]) if extensions is None else extensions,
            not_before=now + start,
            not_after=now + end,
        )
        return Client([leaf], private)

    return make


def subject(*common_names: str) -> x509.Name:
    """A subject of any common names, empty and over-long ones included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, cn, _validate=False) for cn in common_names]
        )


def of_a_stranger(authority: Authority) -> Client:
    return issued()(Authority.create(name="Somebody else's CA"))


def of_a_namesake(authority: Authority) -> Client:
    return issued()(Authority.create())


def of_an_impostor(authority: Authority) -> Client:
    """Signed in the name of the CA, and without what would tell which of its keys it was."""
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(authority.certificate.subject)
        .subject_name(common_name(VALID))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    for extension, critical in leaf_extensions([CLIENT_AUTH]):
        builder = builder.add_extension(extension, critical)
    return Client([builder.sign(KEY, hashes.SHA256())])


def self_signed(_: Authority) -> Client:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(common_name(VALID))
        .subject_name(common_name(VALID))
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    for extension, critical in leaf_extensions([CLIENT_AUTH]):
        builder = builder.add_extension(extension, critical)
    return Client([builder.sign(KEY, hashes.SHA256())])


def through_an_intermediate(authority: Authority, *, sent: bool = True) -> Client:
    """Issued by a CA below the trusted one, whose certificate the client sends along, or not."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    middle = authority.certify(
        key.public_key(),
        common_name("Devices CA"),
        [(x509.BasicConstraints(ca=True, path_length=0), True)],
        not_before=now - DAY,
        not_after=now + DAY,
    )
    client = issued("device-7@plant.local")(Authority(middle, key))
    return Client([*client.chain, middle], client.key) if sent else client


def without_the_intermediate(authority: Authority) -> Client:
    return through_an_intermediate(authority, sent=False)


def request(server: Server, context: ssl.SSLContext) -> tuple[Answer, int]:
    """Check in. Returns the answer and the port it came from."""
    connection = http.client.HTTPSConnection(
        "localhost", server.port, context=context, timeout=PATIENCE_S
    )
    connection.connect()
    port: int = connection.sock.getsockname()[1]
    try:
        return exchange(connection, "POST", "/api/client"), port
    finally:
        connection.close()


def log_length(server: Server) -> int:
    [(count,)] = server.rows("SELECT count(*) FROM check_in")
    assert isinstance(count, int)
    return count


def logged(server: Server, event: str, **fields: str) -> None:
    """Assert that a line says so, and that no line has in it what would forge another."""

    def matches(line: str) -> bool:
        entry: dict[str, Any] = json.loads(line)
        return entry["event"] == event and fields.items() <= entry.items()

    server.log.wait_for(matches, f"{event} {fields}")
    assert all(line.isprintable() for line in server.log.lines)
    assert not [line for line in server.log.lines if "Traceback" in line]


# ------------------------------------------------------------------------------------- accepted


@pytest.mark.parametrize(
    ("make", "email"),
    [
        pytest.param(issued(), VALID, id="valid"),
        pytest.param(issued("VALID_User@EXAMPLE.com"), VALID, id="upper case"),
        pytest.param(issued("anna@bücher.example"), "anna@xn--bcher-kva.example", id="U-label"),
        pytest.param(
            issued("anna@XN--bcher-kva.example"), "anna@xn--bcher-kva.example", id="A-label"
        ),
        pytest.param(issued(f"{'a' * 52}@example.com"), f"{'a' * 52}@example.com", id="64 long"),
        pytest.param(
            issued(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Plant"),
                        x509.NameAttribute(NameOID.COMMON_NAME, VALID),
                    ]
                )
            ),
            VALID,
            id="an organisation beside it",
        ),
        pytest.param(
            issued(extensions=leaf_extensions([CLIENT_AUTH], [x509.RFC822Name(VALID.upper())])),
            VALID,
            id="alternative name in upper case",
        ),
        pytest.param(
            issued(extensions=leaf_extensions([CLIENT_AUTH, SERVER_AUTH])),
            VALID,
            id="for servers too",
        ),
        pytest.param(through_an_intermediate, "device-7@plant.local", id="intermediate CA"),
        pytest.param(issued(key=lambda: rsa.generate_private_key(65537, 2048)), VALID, id="RSA"),
        pytest.param(issued(key=ed25519.Ed25519PrivateKey.generate), VALID, id="Ed25519"),
    ],
)
def test_a_good_certificate_checks_in_under_its_canonical_e_mail(
    server: Server,
    authority: Authority,
    context_of: Callable[[Client], ssl.SSLContext],
    make: Make,
    email: str,
) -> None:
    """204, and the log says who, from where, and with which certificate."""
    client = make(authority)
    before = log_length(server)
    answer, port = request(server, context_of(client))
    assert (answer.status, answer.body) == (204, b"")
    assert log_length(server) == before + 1
    newest = server.rows(
        "SELECT email, host(client_ip), client_port, issuer, serial"
        " FROM check_in ORDER BY seq DESC LIMIT 1"
    )
    issuer, serial = client.leaf.issuer.rfc4514_string(), f"{client.leaf.serial_number:x}"
    assert newest == [(email, LOOPBACK, port, issuer, serial)]
    [(seq,)] = server.rows("SELECT max(seq) FROM check_in")
    assert server.rows("SELECT seq FROM user_status WHERE email = %s", email) == [(seq,)]


# ------------------------------------------------------------------------- refused with an answer

CA_ITSELF = [
    (x509.BasicConstraints(ca=True, path_length=None), True),
    (x509.ExtendedKeyUsage([CLIENT_AUTH]), False),
]
OF_ANOTHER = leaf_extensions([CLIENT_AUTH], [x509.RFC822Name("other@example.com")])
NO_PURPOSE = [(x509.BasicConstraints(ca=False, path_length=None), True)]
NOT_FOR_CLIENTS = "The certificate is not meant for TLS clients (extended key usage clientAuth)"


@pytest.mark.parametrize(
    ("make", "status", "reason", "detail"),
    [
        pytest.param(issued(subject()), 400, "cn-count", SENTENCE, id="no CN"),
        pytest.param(issued(subject(VALID, VALID)), 400, "cn-count", SENTENCE, id="CN twice"),
        pytest.param(
            issued(subject(VALID, "b@example.com")), 400, "cn-count", SENTENCE, id="two CNs"
        ),
        pytest.param(issued(subject("")), 400, "cn-invalid", SENTENCE, id="empty CN"),
        pytest.param(issued("Valid User"), 400, "cn-invalid", SENTENCE, id="a name"),
        pytest.param(issued(f"{VALID}\0.evil.org"), 400, "cn-invalid", SENTENCE, id="CN with NUL"),
        pytest.param(
            issued(f'{VALID}\r\n{{"event": "forged"}}'),
            400,
            "cn-invalid",
            SENTENCE,
            id="CN with CR LF",
        ),
        pytest.param(
            issued(f"\u202e{VALID}"), 400, "cn-invalid", SENTENCE, id="CN with a right-to-left mark"
        ),
        pytest.param(
            issued(f"\x1b[2J{VALID}"), 400, "cn-invalid", SENTENCE, id="CN with an escape sequence"
        ),
        pytest.param(
            issued(subject(f"{'a' * 53}@example.com")), 400, "cn-invalid", SENTENCE, id="65 long"
        ),
        pytest.param(
            issued(subject(f"{'a' * 288}@example.com")), 400, "cn-invalid", SENTENCE, id="300 long"
        ),
        pytest.param(
            issued("not_an_email", CA_ITSELF), 400, "cn-invalid", SENTENCE, id="bad CN and a CA"
        ),
        pytest.param(
            issued("not_an_email", NO_PURPOSE), 400, "cn-invalid", SENTENCE, id="bad CN, no EKU"
        ),
        pytest.param(
            issued(extensions=OF_ANOTHER),
            400,
            "san-mismatch",
            "The e-mail in subjectAltName must agree with the CN",
            id="alternative name disagrees",
        ),
        pytest.param(
            issued(extensions=NO_PURPOSE), 403, "not-for-clients", NOT_FOR_CLIENTS, id="no EKU"
        ),
        pytest.param(
            issued(extensions=[]), 403, "not-for-clients", NOT_FOR_CLIENTS, id="no extensions"
        ),
        pytest.param(
            issued(extensions=CA_ITSELF),
            403,
            "is-ca",
            "A CA certificate is not accepted as a client",
            id="a CA as a client",
        ),
    ],
)
def test_a_certificate_that_may_not_check_in_is_told_why_and_recorded_nowhere(
    server: Server,
    authority: Authority,
    context_of: Callable[[Client], ssl.SSLContext],
    make: Make,
    status: int,
    reason: str,
    detail: str,
) -> None:
    """The CN's sentence, or a reason of its own; one count, one clean line in the log, no row."""
    before, count = log_length(server), refused(server, reason)
    users = server.rows("SELECT count(*) FROM user_status")
    answer, _ = request(server, context_of(make(authority)))
    assert (answer.status, answer.detail) == (status, detail)
    assert log_length(server) == before
    assert server.rows("SELECT count(*) FROM user_status") == users
    assert refused(server, reason) == count + 1
    logged(server, "identity refused", reason=reason, client_ip=LOOPBACK)


# ------------------------------------------------------------------------- refused in the handshake

REQUEST = b"POST /api/client HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


def rejected(server: Server, context: ssl.SSLContext, alert: str, sent: bytes = REQUEST) -> None:
    """Check in as a client that believes in its handshake; assert that it reads this alert.

    Neither an end without a word, nor a reset.
    """
    with (
        pytest.raises(ssl.SSLError, match=f" alert {alert}"),
        socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        secure.sendall(sent)
        secure.recv(1)


@pytest.mark.parametrize(
    ("make", "alert", "kind"),
    [
        pytest.param(
            of_a_stranger, "unknown ca", "unable-to-get-local-issuer-certificate", id="wrong CA"
        ),
        pytest.param(
            of_a_namesake, "unknown ca", "unable-to-get-local-issuer-certificate", id="same name"
        ),
        pytest.param(
            of_an_impostor, "decrypt error", "certificate-signature-failure", id="bad signature"
        ),
        pytest.param(
            without_the_intermediate,
            "unknown ca",
            "unable-to-get-local-issuer-certificate",
            id="intermediate CA not sent",
        ),
        pytest.param(self_signed, "unknown ca", "self-signed-certificate", id="self-signed"),
        pytest.param(
            issued(start=-2 * DAY, end=-DAY),
            "certificate expired",
            "certificate-has-expired",
            id="expired",
        ),
        pytest.param(
            issued(start=DAY, end=2 * DAY),
            "bad certificate",
            "certificate-is-not-yet-valid",
            id="not yet valid",
        ),
        pytest.param(
            issued(extensions=leaf_extensions([SERVER_AUTH])),
            "unsupported certificate",
            "unsuitable-certificate-purpose",
            id="for servers only",
        ),
        pytest.param(
            issued(extensions=leaf_extensions([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])),
            "unsupported certificate",
            "unsuitable-certificate-purpose",
            id="for any purpose",
        ),
        pytest.param(
            issued("not_an_email", leaf_extensions([SERVER_AUTH])),
            "unsupported certificate",
            "unsuitable-certificate-purpose",
            id="for servers only, bad CN",
        ),
    ],
)
def test_a_certificate_that_proves_nothing_fails_with_a_readable_alert(
    server: Server,
    authority: Authority,
    context_of: Callable[[Client], ssl.SSLContext],
    make: Make,
    alert: str,
    kind: str,
) -> None:
    """Every time, though the client has sent its request already; counted and logged, no row."""
    before, count = log_length(server), refused(server, kind)
    context = context_of(make(authority))
    for _ in range(ATTEMPTS):
        rejected(server, context, alert)
    wait_until(lambda: refused(server, kind) == count + ATTEMPTS, f"{ATTEMPTS} more {kind}")
    assert log_length(server) == before
    logged(server, "handshake failed", kind=kind, client_ip=LOOPBACK)


def test_no_certificate_at_all_fails_with_a_readable_alert(server: Server) -> None:
    """Every time, in the words of RFC 8446."""
    kind = "peer-did-not-return-a-certificate"
    count = refused(server, kind)
    for _ in range(ATTEMPTS):
        rejected(server, server.client_context(None), "certificate required")
    wait_until(lambda: refused(server, kind) == count + ATTEMPTS, f"{ATTEMPTS} more {kind}")
    logged(server, "handshake failed", kind=kind, client_ip=LOOPBACK)


def test_the_end_of_the_connection_leaves_time_to_read_the_alert(
    start_server: StartServer,
) -> None:
    """Chromium shows a network error in its place if the end comes with it."""
    server = start_server(constants={LINGER_S: 5})
    secure = server.connect_raw(None)
    with pytest.raises(ssl.SSLError, match="certificate required"):
        secure.recv(1)
    with socket.socket(fileno=secure.detach()) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(PATIENCE_S)
        assert connection.recv(1) == b""


def test_a_client_of_an_older_tls_fails_with_a_readable_alert(server: Server, certs: Path) -> None:
    """TLS 1.2 would show its e-mail to whoever taps the wire."""
    context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
    context.load_cert_chain(certs / "client.crt", certs / "client.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    before, count = log_length(server), refused(server, "unsupported-protocol")
    for _ in range(ATTEMPTS):
        rejected(server, context, "protocol version")
    wait_until(
        lambda: refused(server, "unsupported-protocol") == count + ATTEMPTS, "all of them counted"
    )
    assert log_length(server) == before
    logged(server, "handshake failed", kind="unsupported-protocol", client_ip=LOOPBACK)


def test_tls_1_2_is_spoken_without_cbc(start_server: StartServer, certs: Path) -> None:
    """If it is allowed: authenticated encryption with forward secrecy, and nothing older."""
    server = start_server(tls={"minimum_version": "1.2"})

    def cipher(offered: str) -> str:
        context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        context.load_cert_chain(certs / "client.crt", certs / "client.key")
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(offered)
        raw = socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S)
        with context.wrap_socket(raw, server_hostname="localhost") as secure:
            used = secure.cipher()
            assert used is not None
            return used[0]

    assert "GCM" in cipher("ECDHE+AESGCM")
    assert "CHACHA20" in cipher("ECDHE+CHACHA20")
    for old in ("ECDHE+AES+SHA384", "ECDHE+AES+SHA1", "AESGCM+kRSA"):
        with pytest.raises(ssl.SSLError):
            cipher(old)


def test_a_crowd_of_rejected_clients_reads_its_alerts(
    server: Server, authority: Authority, context_of: Callable[[Client], ssl.SSLContext]
) -> None:
    """All at once, each with more to say than is read; a good client gets in meanwhile."""
    context = context_of(of_a_stranger(authority))
    body = b"POST /api/client HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
    with ThreadPoolExecutor(8) as pool:
        crowd = [
            pool.submit(rejected, server, context, "unknown ca", body) for _ in range(5 * ATTEMPTS)
        ]
        assert server.request("POST", "/api/client").status == 204
        for client in crowd:
            client.result(PATIENCE_S)


# ---------------------------------------------------------------------------- sessions, addresses


@pytest.mark.parametrize(
    ("cert", "email"),
    [("client", VALID), ("operator", "operator@example.com"), ("bad_client", None)],
)
def test_a_resumed_session_is_still_the_same_client(
    server: Server, cert: str, email: str | None
) -> None:
    """No certificate is sent again; who it was is judged again, and others' sessions are theirs."""
    context = server.client_context(cert)
    session: ssl.SSLSession | None = None
    for resumed in (False, True, True):
        before = log_length(server)
        # Another client in between, so that the newest session is not this one's.
        assert server.request("POST", "/api/client", cert="operator").status == 204
        raw = socket.create_connection((LOOPBACK, server.port), timeout=PATIENCE_S)
        secure = context.wrap_socket(raw, server_hostname="localhost", session=session)
        connection = http.client.HTTPConnection("localhost", server.port)
        connection.sock = secure
        assert secure.session_reused == resumed
        port = secure.getsockname()[1]
        connection.request("POST", "/api/client")
        response = connection.getresponse()
        session = secure.session  # in TLS 1.3 it comes with what is read first
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        if email is None:
            assert (answer.status, answer.detail) == (400, SENTENCE)
            assert log_length(server) == before + 1
        else:
            assert answer.status == 204
            newest = server.rows(
                "SELECT email, client_port FROM check_in WHERE seq > %s ORDER BY seq", before + 1
            )
            assert newest == [(email, port)]


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        pytest.param("::1", ["::1"], id="::1"),
        pytest.param("::", ["::1", LOOPBACK], id="::"),
    ],
)
def test_an_ipv6_client_is_recorded_and_announced_by_its_real_address(
    start_server: StartServer, host: str, addresses: list[str]
) -> None:
    """As `::1` and not `::ffff:...`, with its port; beside it IPv4 is IPv4."""
    require("IPv6", has_ipv6(), "::1 on the loopback interface")
    server = start_server(server={"host": host})
    with Heard(server.announce_port) as heard:
        for address in addresses:
            connection = http.client.HTTPSConnection(
                address, server.port, context=server.client_context(), timeout=PATIENCE_S
            )
            connection.connect()
            port = connection.sock.getsockname()[1]
            assert exchange(connection, "POST", "/api/client").status == 204
            connection.close()
            assert server.rows("SELECT host(client_ip), client_port FROM user_status") == [
                (address, port)
            ]
            [update] = heard.updates(1)
            assert (update["client_ip"], update["client_port"]) == (address, port)
