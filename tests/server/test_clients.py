"""The client: it checks in, or says in one sentence why it could not."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import cli, heartbeat
from clients.check_in import CheckInClient
from clients.heartbeat import Heartbeat
from clients.https import Refused, SetUpError, Unreachable, parse_url, printable
from tests.support.harness import LOOPBACK, PATIENCE_S, ROOT, Lines, free_port

no_deadline = settings(deadline=None)  # a busy machine is no failure

SUCCESS = "Success! (204 No Content)"

# ------------------------------------------------------------------------------------- certificates


@dataclass(frozen=True)
class Authority:
    """A CA of our own, for certificates that no tool should make by accident."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self,
        directory: Path,
        name: str,
        common_name: str,
        *,
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
        days: tuple[int, int] = (-2, 2),
    ) -> int:
        """Write NAME.crt and NAME.key, and return the certificate's serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(common_name, key, days).issuer_name(self.certificate.subject)
        certificate = builder.add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        ).add_extension(x509.SubjectAlternativeName([x509.DNSName(common_name)]), critical=False)
        signed = certificate.sign(self.key, hashes.SHA256())
        (directory / f"{name}.crt").write_bytes(_pem(signed))
        (directory / f"{name}.key").write_bytes(_key_pem(key))
        return signed.serial_number

    def revoke(self, path: Path, *serials: int) -> None:
        """Write a list that revokes `serials`."""
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, now, now + day)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial, now - day).build()
            builder = builder.add_revoked_certificate(revoked)
        path.write_bytes(
            builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )


def _builder(
    common_name: str, key: ec.EllipticCurvePrivateKey, days: tuple[int, int]
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def make_authority(name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name, key, (-2, 2))
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every certificate that a client could come with."""
    directory = tmp_path_factory.mktemp("pki")
    ca, foreign = make_authority("test CA"), make_authority("foreign CA")
    (directory / "ca.crt").write_bytes(_pem(ca.certificate))
    (directory / "foreign_ca.crt").write_bytes(_pem(foreign.certificate))
    server = ExtendedKeyUsageOID.SERVER_AUTH
    ca.issue(directory, "server", "localhost", usage=server)
    ca.issue(directory, "other_host", "other.example", usage=server)
    ca.issue(directory, "client", "valid_user@example.com")
    ca.issue(directory, "bad_client", "not an e-mail address")
    ca.issue(directory, "expired", "valid_user@example.com", days=(-2, -1))
    ca.issue(directory, "wrong_usage", "valid_user@example.com", usage=server)
    foreign.issue(directory, "foreign", "valid_user@example.com")
    ca.revoke(directory / "ca.crl", ca.issue(directory, "revoked", "valid_user@example.com"))
    return directory


# --------------------------------------------------------------------------------------- the server


@dataclass(frozen=True)
class Request:
    """A client's request, the name in its certificate, and its connection."""

    line: str
    headers: str
    common_name: str | None
    connection: int


@dataclass(frozen=True)
class Hanging:
    """An answer after which the server hangs up, without having said so in the answer."""

    answer: bytes


MUTE = b""  # no answer at all, and no end

Answers = Callable[[Request], bytes | Hanging]


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        *(f"{name.replace('_', '-')}: {v}" for name, v in headers.items()),
    ]
    if not status.startswith("204"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def problem(status: str, detail: str, **headers: str) -> bytes:
    code, _, title = status.partition(" ")
    members = {"title": title, "status": int(code), "detail": detail}
    body = json.dumps(members).encode()
    return answer(status, body, Content_Type="application/problem+json", **headers)


RECORDED = answer("204 No Content")


def one_after_the_other(*answers: bytes | Hanging) -> Answers:
    """Give one answer to each request; the last to all that follow."""
    each = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda request: next(each)


class HttpsServer:
    """A real HTTPS server on loopback that gives any answer, also wrong ones."""

    def __init__(
        self,
        pki: Path,
        answers: Answers,
        *,
        certificate: str = "server",
        client_certificate: ssl.VerifyMode = ssl.CERT_REQUIRED,
        crl: bool = False,
        reset: bool = False,
        deaf: bool = False,
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self._answers = answers
        self._reset = reset
        self._deaf = deaf
        self.hung_up = threading.Event()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pki / f"{certificate}.crt", pki / f"{certificate}.key")
        self._context.load_verify_locations(pki / "ca.crt")
        self._context.verify_mode = client_certificate
        if crl:
            self._context.load_verify_locations(pki / "ca.crl")
            self._context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"https://localhost:{self.port}/api/client"
        self._ending = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> HttpsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        # A connection of our own wakes the accepting thread up, on every platform.
        with contextlib.suppress(OSError):
            socket.create_connection((LOOPBACK, self.port), PATIENCE_S).close()
        self._threads[0].join(PATIENCE_S)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self._ending.is_set():
                sock.close()
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock, self.connections))
            self._threads.append(thread)
            self._open.add(sock)
            thread.start()

    def _serve(self, raw: socket.socket, connection: int) -> None:
        raw.settimeout(PATIENCE_S)
        duplicate = raw.dup()  # survives the TLS socket, and shuts the same connection down
        self._open.add(duplicate)
        try:
            with raw, contextlib.suppress(OSError):
                with self._context.wrap_socket(raw, server_side=True) as stream:
                    if not self._deaf:
                        self._talk(stream, connection)
            # Closing with something unread resets the connection, and the reset can overtake an
            # alert on its way: read until the client has closed.
            with contextlib.suppress(OSError):
                if self._reset:
                    linger = struct.pack("ii", 1, 0)
                    duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                else:
                    duplicate.shutdown(socket.SHUT_WR)
                    while duplicate.recv(4096):
                        pass
        finally:
            self._open.discard(duplicate)
            self._open.discard(raw)
            duplicate.close()
            self.hung_up.set()

    def _talk(self, stream: ssl.SSLSocket, connection: int) -> None:
        with stream.makefile("rb") as lines:
            while request_line := lines.readline().decode("latin-1").strip():
                headers = b"".join(iter(lines.readline, b"\r\n")).decode("latin-1")
                certificate = stream.getpeercert()
                request = Request(request_line, headers, _common_name(certificate), connection)
                self.requests.append(request)
                reply = self._answers(request)
                if isinstance(reply, Hanging):
                    stream.sendall(reply.answer)
                    return
                if reply == MUTE:
                    self._ending.wait(PATIENCE_S)
                    return
                stream.sendall(reply)
                if b"connection: close" in reply.lower():
                    return


def _common_name(certificate: object) -> str | None:
    match = re.search(r"'commonName', '([^']*)'", repr(certificate))
    return match[1] if match else None


def as_the_service_does(request: Request) -> bytes:
    """Judge the name in the certificate as the real server does."""
    if request.common_name is None:
        return problem("400 Bad Request", "No required SSL certificate was sent")
    if "@" not in request.common_name:
        return problem("400 Bad Request", "CN must be a valid email address")
    return RECORDED


# --------------------------------------------------------------------------------------- the client

CLIENT = [sys.executable, "-W", "error", "-m", "clients"]


def arguments(pki: Path, url: str, name: str = "client") -> list[str]:
    return [
        *("--url", url, "--ca", str(pki / "ca.crt")),
        *("--cert", str(pki / f"{name}.crt") if name else ""),  # '' sends none
        *("--key", str(pki / f"{name}.key")),
    ]


def check_in(*given: str) -> tuple[int, str, str]:
    """Run a client to its end. Returns the exit status and what it wrote on both streams."""
    result = subprocess.run(
        [*CLIENT, *given], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return result.returncode, result.stdout, result.stderr


@dataclass
class RunningClient:
    """A client that runs on."""

    process: subprocess.Popen[str]
    output: Lines = field(init=False)
    remarks: Lines = field(init=False)

    def __post_init__(self) -> None:
        self.output = Lines(self.process.stdout)
        self.remarks = Lines(self.process.stderr)

    def says(self, text: str) -> str:
        return self.remarks.wait_for(lambda line: text in line, text)

    def succeeds(self) -> None:
        self.output.wait_for(lambda line: line == SUCCESS, SUCCESS)

    def stopped(self, number: int = signal.SIGTERM) -> tuple[int, list[str]]:
        """Send a signal; return the exit status and all it said on stderr."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        self.remarks.wait_end()
        return status, self.remarks.lines


@contextlib.contextmanager
def running_client(given: Sequence[str]) -> Iterator[RunningClient]:
    process = subprocess.Popen(
        [*CLIENT, *given], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    client = RunningClient(process)
    try:
        yield client
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        client.output.wait_end()
        client.remarks.wait_end()


# ------------------------------------------------------------------------------------ what it sends


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_it_checks_in_with_one_empty_request(pki: Path, method: str) -> None:
    """The certificate says who is here; the request itself is empty."""
    with HttpsServer(pki, as_the_service_does) as server:
        assert check_in(*arguments(pki, server.url), "--method", method) == (0, f"{SUCCESS}\n", "")
    (request,) = server.requests
    assert request.line == f"{method} /api/client HTTP/1.1"
    assert request.common_name == "valid_user@example.com"
    assert "Content-Length: 0\r\n" in request.headers


def test_the_defaults_are_those_of_a_server_started_beside_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without flags it finds the server and the certificates of the same directory."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for default in (
        "https://localhost:8443/api/client",
        "certs/client.crt",
        "certs/client.key",
        "certs/ca.crt",
    ):
        assert f"(default: {default})" in text
    assert "exit status:" in text


# ------------------------------------------------------------------------------ what it is answered


@pytest.mark.parametrize(
    ("reply", "status", "sentence"),
    [
        (
            problem("400 Bad Request", "CN must be a valid email address"),
            1,
            "Refused (400 Bad Request): CN must be a valid email address",
        ),
        (problem("403 Forbidden", "User unknown"), 1, "Refused (403 Forbidden): User unknown"),
        (answer("404 Not Found", b"<html>"), 1, "Refused (404 Not Found)"),
        (answer("403 Forbidden", b'{"detail":7}'), 1, "Refused (403 Forbidden)"),
        (answer("403 Forbidden", b"[" * 60_000), 1, "Refused (403 Forbidden)"),
        (answer("400 Bad Request", b"x" * 200_000), 1, "Refused (400 Bad Request)"),
        (answer("499 Whatever"), 1, "Refused (499)"),
        (
            answer("200 OK", b"hello"),
            1,
            "Not recorded (200 OK): expected 204, so this may be the wrong URL",
        ),
        (
            answer("302 Found", Location="/elsewhere"),
            1,
            "Not recorded (302 Found): expected 204, so this may be the wrong URL",
        ),
        (problem("429 Too Many Requests", "Slowly"), 3, "Not now (429 Too Many Requests): Slowly"),
        (
            problem("503 Service Unavailable", "Database away", Retry_After="2"),
            3,
            "Not now (503 Service Unavailable): Database away",
        ),
        (answer("500 Internal Server Error"), 3, "Not now (500 Internal Server Error)"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", value[9:25].decode()) if isinstance(value, bytes) else "",
)
def test_an_answer_is_one_sentence_and_an_exit_status(
    pki: Path, reply: bytes, status: int, sentence: str
) -> None:
    """A script reads the status, a person the server's own reason."""
    with HttpsServer(pki, one_after_the_other(reply)) as server:
        assert check_in(*arguments(pki, server.url)) == (status, "", f"{sentence}\n")


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"x" * 100_000 + b"\r\n",
    ],
    ids=["other protocol", "no status", "too many headers", "endless line"],
)
def test_a_garbled_answer_is_a_sentence(pki: Path, reply: bytes) -> None:
    """An answer that is not HTTP is no success and no crash."""
    with HttpsServer(pki, lambda _: Hanging(reply)) as server:
        status, output, remark = check_in(*arguments(pki, server.url))
    assert (status, output) == (3, "")
    assert remark == f"localhost port {server.port} gave an answer that is not HTTP\n"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 20", 3),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 500\r\n\r\n{", 1),
        (b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{", 3),
    ],
)
def test_an_answer_that_breaks_off_is_no_success(pki: Path, reply: bytes, expected: int) -> None:
    """A server that dies in its answer has not said that it recorded anything."""
    with HttpsServer(pki, lambda _: Hanging(reply)) as server:
        status, output, remark = check_in(*arguments(pki, server.url))
    assert (status, output) == (expected, "")
    assert remark.count("\n") == 1


def test_no_answer_is_a_sentence(pki: Path) -> None:
    """A server that hangs up without a word is told apart from one that refuses."""
    with HttpsServer(pki, lambda _: Hanging(b"")) as server:
        status, output, remark = check_in(*arguments(pki, server.url))
    assert (status, output) == (3, "")
    assert "closed the connection without an answer" in remark
    assert len(server.requests) == 1  # a new connection is not stale: no second attempt


def test_a_mute_server_is_given_up(pki: Path) -> None:
    """A server that takes the request and says nothing does not hold the client for ever."""
    with HttpsServer(pki, lambda _: MUTE) as server:
        status, output, remark = check_in(*arguments(pki, server.url), "--timeout", "0.3")
    assert (status, output) == (3, "")
    assert remark == f"No answer from localhost port {server.port} within 0.3 seconds\n"


def test_a_mute_handshake_is_given_up(pki: Path) -> None:
    """A port that accepts and says nothing does not either."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        status, output, remark = check_in(
            *arguments(pki, f"https://localhost:{port}/"), "--timeout", "0.3"
        )
    assert (status, output) == (3, "")
    assert remark == f"No answer from localhost port {port} within 0.3 seconds\n"


def test_a_servers_text_cannot_steer_the_terminal(pki: Path) -> None:
    """The client shows what a server sends and never obeys it."""
    hostile = problem("400 Bad Request", "a\x1b[2J\r\nSuccess!\u202e\x9b" + "x" * 5000)
    with HttpsServer(pki, one_after_the_other(hostile)) as server:
        _, _, remark = check_in(*arguments(pki, server.url))
    assert remark.startswith(r"Refused (400 Bad Request): a\x1b[2J\r\nSuccess!\u202e\x9bxxx")
    assert remark.endswith("...\n")
    assert len(remark) < 400


# --------------------------------------------------------------------------------- what TLS refuses


@pytest.mark.parametrize(
    ("name", "alert"),
    [
        ("", "certificate required"),
        ("foreign", "unknown ca"),
        ("expired", "certificate expired"),
        ("revoked", "certificate revoked"),
        ("wrong_usage", "unsupported certificate"),
    ],
)
def test_a_certificate_that_the_server_refuses_is_a_sentence(
    pki: Path, name: str, alert: str
) -> None:
    """In TLS 1.3 the refusal comes after the handshake, and is understood all the same."""
    with HttpsServer(pki, as_the_service_does, crl=True) as server:
        status, output, remark = check_in(*arguments(pki, server.url, name))
    assert (status, output) == (1, "")
    assert remark.startswith(f"Refused (TLS alert: {alert}): ")
    assert remark.count("\n") == 1
    assert server.requests == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps what came before a reset")
@pytest.mark.parametrize(
    ("name", "failure", "words"),
    [
        ("foreign", Refused, "TLS alert: unknown ca"),
        ("client", Unreachable, "closed the connection without an answer"),
    ],
)
def test_a_refusal_is_understood_even_after_a_reset(
    pki: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    failure: type[Exception],
    words: str,
) -> None:
    """A server that hangs up at once does not keep its reason from a client that sends late."""
    with HttpsServer(pki, as_the_service_does, reset=True, deaf=True) as server:
        connect = http.client.HTTPSConnection.connect

        def connect_and_dawdle(connection: http.client.HTTPSConnection) -> None:
            connect(connection)
            assert server.hung_up.wait(PATIENCE_S)

        monkeypatch.setattr(http.client.HTTPSConnection, "connect", connect_and_dawdle)
        with a_client(pki, server.url, name) as client:
            with pytest.raises(failure, match=words):
                client.check_in()


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (40, 1, "handshake failure"),
        (42, 1, "bad certificate"),
        (43, 1, "unsupported certificate"),
        (44, 1, "certificate revoked"),
        (45, 1, "certificate expired"),
        (46, 1, "certificate unknown"),
        (48, 1, "unknown ca"),
        (49, 1, "access denied"),
        (51, 1, "decrypt error"),
        (70, 1, "protocol version"),
        (71, 1, "insufficient security"),
        (80, 3, "INTERNAL"),
        (112, 1, "unrecognized name"),
        (116, 1, "certificate required"),
    ],
)
def test_every_alert_is_a_sentence(pki: Path, code: int, status: int, words: str) -> None:
    """Each alert has its reason; the server's own trouble is not a refusal."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(PATIENCE_S)

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE_S)
                sock.recv(4096)  # the ClientHello
                sock.sendall(bytes([21, 3, 3, 0, 2, 2, code]))  # a fatal alert, not yet encrypted
                while sock.recv(4096):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}/"
        got, output, remark = check_in(*arguments(pki, url))
        thread.join(PATIENCE_S)
    assert (got, output) == (status, "")
    assert words in remark
    assert remark.startswith("Refused (TLS alert: ") == (status == 1)


def test_a_server_of_another_ca_is_not_trusted(pki: Path) -> None:
    """Nothing is sent to a server that the given CA did not certify."""
    with HttpsServer(pki, as_the_service_does) as server:
        status, output, remark = check_in(
            *arguments(pki, server.url), "--ca", str(pki / "foreign_ca.crt")
        )
    assert (status, output) == (3, "")
    assert remark.startswith(f"The server's certificate is not trusted by {pki}/foreign_ca.crt (")
    assert server.requests == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_of_another_name_is_not_trusted(pki: Path, host: str) -> None:
    """A certificate of the right CA for another host does not do."""
    with HttpsServer(pki, as_the_service_does, certificate="other_host") as server:
        url = server.url.replace("localhost", host)
        status, output, remark = check_in(*arguments(pki, url))
    assert (status, output) == (3, "")
    assert remark.startswith(f"The server's certificate is not for {host}: ")


def test_a_port_without_tls_is_a_sentence(pki: Path) -> None:
    """A plain HTTP port is not taken for a refusal."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(PATIENCE_S)

        def speak_plainly() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(PATIENCE_S)
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                with contextlib.suppress(OSError):
                    while sock.recv(4096):
                        pass

        thread = threading.Thread(target=speak_plainly)
        thread.start()
        port = listener.getsockname()[1]
        status, _, remark = check_in(*arguments(pki, f"https://localhost:{port}/"))
        thread.join(PATIENCE_S)
    assert status == 3
    assert remark.startswith(f"localhost port {port} does not speak TLS as expected (")


def test_nobody_there_is_a_sentence(pki: Path) -> None:
    """A refused connection is something to try again, and no refusal of the user."""
    port = free_port()
    assert check_in(*arguments(pki, f"https://localhost:{port}/")) == (
        3,
        "",
        f"Nothing listens on localhost port {port} (connection refused)\n",
    )


def test_an_unknown_host_is_a_sentence(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the DNS does not know, or cannot be asked for, may be known later."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # a real one would ask the network
    with a_client(pki, "https://nowhere.example/") as client:
        with pytest.raises(Unreachable, match=r"host name nowhere\.example was not found"):
            client.check_in()


def a_client(pki: Path, url: str, name: str = "client") -> CheckInClient:
    return CheckInClient(
        url,
        certificate=pki / f"{name}.crt",
        private_key=pki / f"{name}.key",
        ca=pki / "ca.crt",
        timeout_s=PATIENCE_S,
    )


# ------------------------------------------------------------------------------- what is wrong here


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "localhost:8443",
        "https://",
        "https:///api/client",
        "https://localhost:0/",
        "https://localhost:65536/",
        "https://localhost:https/",
        "https://[::1/",
        "https://user@localhost/",
        "https://localhost/#top",
        "https://localhost/a b",
        "https://localhost/\r\nX: y",
        "https://lócalhost/",
        "",
    ],
)
def test_a_url_that_is_none_is_one_line_and_status_2(pki: Path, url: str) -> None:
    """A wrong URL is found before anything is sent."""
    status, output, remark = check_in(*arguments(pki, url))
    assert (status, output) == (2, "")
    assert remark.startswith("status-client: the URL ")
    assert remark.count("\n") == 1


def test_the_parts_of_a_url_are_kept() -> None:
    """A path with a query and an IPv6 address are used as they are."""
    target = parse_url("https://[::1]:9443/behind/proxy?a=b")
    assert (target.host, target.port, target.path) == ("::1", 9443, "/behind/proxy?a=b")
    assert parse_url("https://status.example").port == 443
    assert parse_url("https://status.example").path == "/"


@pytest.mark.parametrize("option", ["--cert", "--key", "--ca"])
@pytest.mark.parametrize("every", [(), ("--every", "1")], ids=["once", "every"])
def test_a_missing_file_is_named(pki: Path, option: str, every: tuple[str, ...]) -> None:
    """The file that is not there is named, also by a heartbeat before it starts."""
    url = f"https://localhost:{free_port()}/"
    missing = str(pki / "missing.pem")
    assert check_in(*arguments(pki, url), option, missing, *every) == (
        2,
        "",
        f"status-client: {missing} cannot be read (No such file or directory)\n",
    )


def test_files_that_do_not_fit_are_named(pki: Path, tmp_path: Path) -> None:
    """A wrong key, an encrypted one and what is no PEM at all are told apart."""
    url = f"https://localhost:{free_port()}/"
    given = arguments(pki, url)
    encrypted = tmp_path / "encrypted.key"
    key = serialization.load_pem_private_key((pki / "client.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    encrypted.write_bytes(_key_pem(key, b"passphrase"))
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\x30\x82garbage")
    for more, sentence in (
        (("--key", str(pki / "bad_client.key")), "bad_client.key is not the key of"),
        (("--key", str(encrypted)), "is encrypted: give a key without a passphrase"),
        (("--key", str(garbage)), "are not a certificate and its key in PEM form"),
        (("--cert", str(garbage)), "are not a certificate and its key in PEM form"),
        (("--ca", str(garbage)), "holds no CA certificate in PEM form"),
        (("--ca", str(tmp_path)), "cannot be read (Is a directory)"),
    ):
        status, output, remark = check_in(*given, *more)
        assert (status, output) == (2, "")
        assert sentence in remark
        assert remark.count("\n") == 1


@pytest.mark.parametrize(
    "given",
    [
        ("--every", "0"),
        ("--every", "0.01"),
        ("--every", "-1"),
        ("--every", "inf"),
        ("--timeout", "0"),
        ("--timeout", "1e12"),
        ("--count", "0"),
        ("--count", "2"),
        ("--method", "GET"),
        ("stray",),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_one_line_and_status_2(given: tuple[str, ...]) -> None:
    """No option can make a busy loop, and a wrong one is named."""
    status, output, remark = check_in(*given)
    assert (status, output) == (2, "")
    assert remark.startswith("status-client: ")
    assert given[0] in remark
    assert remark.count("\n") == 1


# ----------------------------------------------------------------------------------- as a heartbeat


def test_a_heartbeat_keeps_its_connection(pki: Path) -> None:
    """Checking in again costs no new handshake."""
    with HttpsServer(pki, as_the_service_does) as server:
        given = [*arguments(pki, server.url), "--every", "0.1", "--count", "3"]
        assert check_in(*given) == (0, f"{SUCCESS}\n" * 3, "")
    assert [request.connection for request in server.requests] == [1, 1, 1]


@pytest.mark.parametrize(
    "reply",
    [Hanging(RECORDED), answer("204 No Content", Connection="close")],
    ids=["unannounced", "announced"],
)
def test_a_connection_that_the_server_closed_is_replaced_at_once(
    pki: Path, reply: bytes | Hanging
) -> None:
    """A stale connection is no failure: the output has successes only."""
    with HttpsServer(pki, lambda _: reply) as server:
        given = [*arguments(pki, server.url), "--every", "0.1", "--count", "3"]
        assert check_in(*given) == (0, f"{SUCCESS}\n" * 3, "")
    assert [request.connection for request in server.requests] == [1, 2, 3]


def test_a_connection_that_dies_anew_is_a_failure(pki: Path) -> None:
    """A stale connection is replaced once, so that nothing goes round in circles."""
    answers = one_after_the_other(RECORDED, Hanging(b""), Hanging(b""), RECORDED)
    with HttpsServer(pki, answers) as server:
        given = [*arguments(pki, server.url), "--every", "0.1", "--count", "3"]
        status, output, remark = check_in(*given)
    assert (status, output) == (0, f"{SUCCESS}\n" * 2)
    assert remark.count("\n") == 1
    assert "closed the connection without an answer" in remark
    assert len(server.requests) == 4


def test_a_heartbeat_goes_on_after_a_failure_and_heeds_retry_after(pki: Path) -> None:
    """An overloaded server gets the rest that it asked for, on a connection that stays."""
    busy = problem("503 Service Unavailable", "Database away", Retry_After="1")
    with HttpsServer(pki, one_after_the_other(busy, RECORDED)) as server:
        given = [*arguments(pki, server.url), "--every", "0.1", "--count", "2"]
        status, output, remark = check_in(*given)
    assert (status, output) == (0, f"{SUCCESS}\n")
    assert remark.startswith("Not now (503 Service Unavailable): Database away (next attempt in ")
    match = re.search(r"in ([\d.]+) seconds\)\n$", remark)
    assert match is not None
    assert 1 <= float(match[1]) <= 2
    assert [request.connection for request in server.requests] == [1, 1]


def test_a_retry_after_may_be_a_date(pki: Path) -> None:
    """The other form of the header is understood too."""
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)
    busy = answer(
        "503 Service Unavailable", Retry_After=email.utils.format_datetime(later, usegmt=True)
    )
    with HttpsServer(pki, one_after_the_other(busy)) as server:
        with a_client(pki, server.url) as client, pytest.raises(Unreachable) as failure:
            client.check_in()
    assert failure.value.retry_after_s is not None
    assert 3600 < failure.value.retry_after_s <= 7200


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "Mon, 99 Foo 2026", "9" * 400, "\xb2"])
def test_a_wrong_retry_after_is_no_crash(pki: Path, value: str) -> None:
    """The wait is bounded for any Retry-After."""
    busy = answer("503 Service Unavailable", Retry_After=value)
    with HttpsServer(pki, one_after_the_other(busy)) as server:
        with a_client(pki, server.url) as client, pytest.raises(Unreachable) as failure:
            client.check_in()
    wait_s = Heartbeat(1, lambda: 1).after_failure(failure.value.retry_after_s)
    assert wait_s <= heartbeat.MAX_RETRY_AFTER_S + heartbeat.MAX_LIMIT_S


def test_the_last_attempt_gives_the_exit_status(pki: Path) -> None:
    """A script that tries a few times learns how it ended."""
    unknown = problem("403 Forbidden", "User unknown")
    with HttpsServer(pki, one_after_the_other(RECORDED, unknown)) as server:
        given = [*arguments(pki, server.url), "--every", "0.1", "--count", "2"]
        assert check_in(*given) == (
            1,
            f"{SUCCESS}\n",
            "Refused (403 Forbidden): User unknown\n",
        )


def test_whoever_was_refused_comes_back_on_a_new_connection(pki: Path) -> None:
    """A refusal belongs to the certificate of a connection: the next one may show another."""
    unknown = problem("403 Forbidden", "User unknown")
    with HttpsServer(pki, one_after_the_other(RECORDED, unknown, RECORDED)) as server:
        given = [*arguments(pki, server.url), "--every", "0.1", "--count", "3"]
        assert check_in(*given)[:2] == (0, f"{SUCCESS}\n" * 2)
    assert [request.connection for request in server.requests] == [1, 1, 2]


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept", "closed"])
def test_an_answer_too_long_to_read_is_left_with_its_connection(
    pki: Path, headers: dict[str, str]
) -> None:
    """The rest of an endless answer is never taken for the next one."""
    long = answer("503 Service Unavailable", b"x" * 200_000, **headers)
    with HttpsServer(pki, one_after_the_other(long, RECORDED)) as server:
        with a_client(pki, server.url) as client:
            with pytest.raises(Unreachable, match="Not now"):
                client.check_in()
            client.check_in()
    assert [request.connection for request in server.requests] == [1, 2]


def test_a_renewed_certificate_is_used_after_a_refusal(pki: Path, tmp_path: Path) -> None:
    """Renewed files need no restart of the heartbeat."""
    own = tmp_path / "own"
    own.mkdir()
    for name in ("ca.crt", "client.crt", "client.key"):
        shutil.copy(pki / name, own)
    shutil.copy(pki / "expired.crt", own / "client.crt")
    shutil.copy(pki / "expired.key", own / "client.key")
    with HttpsServer(pki, as_the_service_does) as server:
        with running_client([*arguments(own, server.url), "--every", "0.1"]) as client:
            client.says("Refused (TLS alert: certificate expired)")
            # Renewed file by file: in between the two do not fit, which is a failure like others.
            shutil.copy(pki / "client.crt", own / "client.crt")
            client.says("is not the key of")
            shutil.copy(pki / "client.key", own / "client.key")
            client.succeeds()
            assert client.stopped()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("reply", [RECORDED, MUTE], ids=["idle", "mute"])
def test_a_signal_ends_a_heartbeat_in_order(
    pki: Path, number: signal.Signals, reply: bytes
) -> None:
    """Both ways of stopping it are a success, also while it waits for an answer."""
    asked = threading.Event()

    def answers(_: Request) -> bytes:
        asked.set()
        return reply

    with HttpsServer(pki, answers) as server:
        with running_client([*arguments(pki, server.url), "--every", "60"]) as client:
            assert asked.wait(PATIENCE_S)
            if reply == RECORDED:
                client.succeeds()
            assert client.stopped(number) == (0, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_check_in_that_was_interrupted_is_no_success(pki: Path, number: signal.Signals) -> None:
    """Without --every, exit status 0 means checked in and nothing else."""
    asked = threading.Event()

    def answers(_: Request) -> bytes:
        asked.set()
        return MUTE

    with HttpsServer(pki, answers) as server:
        with running_client(arguments(pki, server.url)) as client:
            assert asked.wait(PATIENCE_S)
            assert client.stopped(number) == (130, [])


_INTERRUPTED_IN_A_CONSTRUCTOR = """\
import os, signal, socket, sys
from clients.cli import main

made = socket.SocketIO.__init__

def interrupted(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    made(self, *arguments)

socket.SocketIO.__init__ = interrupted
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_inside_a_constructor_prints_nothing(pki: Path) -> None:
    """The finalizer of the half-made object would print that an exception was ignored."""
    with HttpsServer(pki, one_after_the_other(RECORDED)) as server:
        program = [sys.executable, "-c", _INTERRUPTED_IN_A_CONSTRUCTOR]
        done = subprocess.run(
            [*program, *arguments(pki, server.url), "--every", "60"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_reader_that_has_gone_stops_no_heartbeat(pki: Path) -> None:
    """Checking in matters more than the line that tells of it."""
    fourth = threading.Event()

    def answers(_: Request) -> bytes:
        if len(server.requests) >= 4:
            fourth.set()
        return RECORDED

    reading, writing = os.pipe()
    os.close(reading)
    with HttpsServer(pki, answers) as server:
        process = subprocess.Popen(
            [*CLIENT, *arguments(pki, server.url), "--every", "0.1"],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(writing)
        try:
            assert fourth.wait(PATIENCE_S)
            process.terminate()
            _, remarks = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, remarks) == (0, "")


# --------------------------------------------------------------------------- the heartbeat, in pure


def test_back_off_doubles_up_to_a_minute_with_full_jitter() -> None:
    """A server that is away is asked ever more rarely, and by no two clients at once."""
    highest = Heartbeat(30, lambda: 1.0)
    assert [highest.after_failure() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    half = Heartbeat(30, lambda: 0.5)
    assert [half.after_failure() for _ in range(3)] == [0.5, 1, 2]
    assert half.after_success(took_s=0.25) == 29.75
    assert half.after_failure() == 0.5


@no_deadline
@given(
    st.floats(0.1, 1000),
    st.lists(
        st.tuples(
            st.booleans(),
            st.floats(0, 1, exclude_max=True),
            st.one_of(st.none(), st.floats(0), st.just(float("inf"))),
        ),
        max_size=20,
    ),
)
def test_no_course_of_events_makes_a_busy_loop_or_an_endless_wait(
    every_s: float, course: list[tuple[bool, float, float | None]]
) -> None:
    """Every wait has a floor and a ceiling, whatever the server says and chance draws."""
    drawn = iter([draw for _, draw, _ in course])
    rhythm = Heartbeat(every_s, lambda: next(drawn))
    for succeeds, _, asked in course:
        wait_s = rhythm.after_success(asked or 0) if succeeds else rhythm.after_failure(asked)
        if succeeds:
            next(drawn)
        ceiling = max(every_s, heartbeat.MAX_RETRY_AFTER_S + heartbeat.MAX_LIMIT_S)
        assert heartbeat.MIN_WAIT_S <= wait_s <= ceiling


@no_deadline
@given(st.text(max_size=1000))
def test_a_strangers_text_is_one_bounded_line(text: str) -> None:
    """Nothing that is printed can break a line or move the cursor."""
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 300


@no_deadline
@given(st.text(max_size=60))
def test_any_url_is_read_or_refused(text: str) -> None:
    """Any text that a user types is a URL or one sentence, never a traceback."""
    for url in (text, f"https://{text}"):
        with contextlib.suppress(SetUpError):
            target = parse_url(url)
            assert target.host
            assert 0 < target.port < 65536


# --------------------------------------------------------------------------------- the bash scripts

scripts = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl"
)


def script(name: str, pki: Path, url: str) -> tuple[int, str, str]:
    result = subprocess.run(
        [ROOT / "clients" / name],
        env={**os.environ, "URL": url, "CERTS": str(pki)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return result.returncode, result.stdout, result.stderr


@scripts
@pytest.mark.parametrize("mode", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
def test_the_scenarios_pass_against_a_server_that_does_right(
    pki: Path, mode: ssl.VerifyMode
) -> None:
    """Three curl commands show in three lines that a server accepts and refuses as it must."""
    with HttpsServer(pki, as_the_service_does, client_certificate=mode) as server:
        status, output, remark = script("scenarios.sh", pki, server.url)
    assert (status, remark) == (0, "")
    good, bad, none = output.splitlines()
    assert good == f"ok     check_in: expected {SUCCESS}; got {SUCCESS}"
    assert bad.endswith("; got Refused (400 Bad Request): CN must be a valid email address")
    refused = "(TLS alert)" if mode is ssl.CERT_REQUIRED else "(400 Bad Request): No required SSL"
    assert none.startswith("ok     no_certificate: ")
    assert f"; got Refused {refused}" in none


@scripts
def test_the_scenarios_fail_against_a_server_that_takes_everybody(pki: Path) -> None:
    """A server that does not look at certificates does not pass."""
    answers = one_after_the_other(RECORDED)
    with HttpsServer(pki, answers, client_certificate=ssl.CERT_OPTIONAL) as server:
        status, output, _ = script("scenarios.sh", pki, server.url)
    assert status == 1
    assert [line.split()[0] for line in output.splitlines()] == ["ok", "FAILED", "FAILED"]


@scripts
@pytest.mark.parametrize("name", ["check_in.sh", "bad_identity.sh", "no_certificate.sh"])
def test_a_server_that_is_not_there_refuses_nobody(pki: Path, name: str) -> None:
    """A refused connection is never mistaken for a refused client."""
    status, output, remark = script(name, pki, f"https://localhost:{free_port()}/")
    assert status == 1
    assert "Refused" not in output + remark


@scripts
def test_a_server_that_only_hangs_up_refuses_nobody(pki: Path) -> None:
    """Without an alert the server has not said that the certificate was missing."""
    answers = one_after_the_other(Hanging(b""))
    with HttpsServer(pki, answers, client_certificate=ssl.CERT_OPTIONAL) as server:
        status, output, _ = script("no_certificate.sh", pki, server.url)
    assert status == 1
    assert "Refused" not in output


@scripts
def test_each_script_prints_its_answer(pki: Path) -> None:
    """Each scenario also stands alone."""
    with HttpsServer(pki, as_the_service_does) as server:
        assert script("check_in.sh", pki, server.url) == (0, f"{SUCCESS}\n", "")
        assert script("bad_identity.sh", pki, server.url) == (
            0,
            "Refused (400 Bad Request): CN must be a valid email address\n",
            "",
        )
        status, output, remark = script("no_certificate.sh", pki, server.url)
    assert (status, remark) == (0, "")
    assert output.startswith("Refused (TLS alert): ")
