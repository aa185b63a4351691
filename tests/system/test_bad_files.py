"""Files with certificates and keys that are bad in every way: the server keeps the previous ones.

At the start they are one sentence, and exit status 2. A file is bad where something in it, or the
file itself, cannot be used; it is never used in part.
"""

from __future__ import annotations

import datetime
import functools
import http.client
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID

from certs_gen.authority import Authority, new_key
from certs_gen.cli import main as certs_gen
from listeners.verify.known_announcers import KnownAnnouncers
from tests.support.der import FOR_CLIENTS, extension, name, odd, oid, tlv, with_extensions
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    Server,
    exchange,
    rows,
    running_server,
    wait_until,
)
from tests.support.trust_site import replace
from tornado_status.config import loader
from tornado_status.config.settings import Settings
from tornado_status.errors import ConfigError
from tornado_status.pki import tls_contexts
from tornado_status.pki.credentials import credential_files, load_credentials
from tornado_status.pki.files import read_certificates

# By the setting that names it, and what stands in it.
CERTIFICATES = {
    "tls.certificate": "server.crt",
    "tls.client_ca": "ca.crt",
    "announce.signing_key": "announcer.crt",
    "announce.next_certificate": "next.crt",
    "management.certificate": "admin.crt",
}
KEYS = {
    "tls.private_key": "server.key",
    "announce.signing_key": "announcer.key",
    "management.private_key": "admin.key",
}
LISTS = {"tls.crl": "ca.crl"}


def all_settings(certs: Path) -> dict[str, Any]:
    """The settings that name them all."""
    found: dict[str, Any] = {}
    for setting, file in (CERTIFICATES | KEYS | LISTS).items():  # the key of announcer.crt, too
        section, _, key = setting.partition(".")
        found.setdefault(section, {})[key] = str(certs / file)
    return found


@pytest.fixture(scope="module")
def good(certs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that has all of them."""
    own = Path(shutil.copytree(certs, tmp_path_factory.mktemp("good") / "certs"))
    second = tmp_path_factory.mktemp("second")
    shutil.copytree(certs, second, dirs_exist_ok=True)
    assert certs_gen(["announcer", "--force", "--out", str(second)]) == 0
    shutil.copy(second / "announcer.crt", own / "next.crt")
    shutil.copy(own / "server.crt", own / "admin.crt")
    shutil.copy(own / "server.key", own / "admin.key")
    return own


# --------------------------------------------------------------------------------------- badness

Spoil = Callable[[Path, bytes], None]  # the file, and what good there was in it


def content(make: Callable[[bytes], bytes]) -> Spoil:
    return lambda path, before: replace(path, make(before))


def armoured(label: str, der: bytes) -> bytes:
    pem = ssl.DER_cert_to_PEM_cert(der)
    return pem.replace("CERTIFICATE", label).encode()


def der_of(pem: bytes) -> bytes:
    lines = [line for line in pem.decode().splitlines() if not line.startswith("-")]
    body = "\n".join(lines)
    return ssl.PEM_cert_to_DER_cert(
        f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
    )


def as_directory(path: Path, _: bytes) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, _: bytes) -> None:
    """For root too: permissions do not stop it."""
    path.unlink()
    path.symlink_to(path.name)


def as_pipe(path: Path, _: bytes) -> None:
    path.unlink()
    os.mkfifo(path)


ANY: dict[str, Spoil] = {
    "missing": lambda path, _: path.unlink(),
    "empty": content(lambda _: b""),
    "truncated": content(lambda pem: pem[: len(pem) * 2 // 3]),
    "binary": content(lambda _: bytes(range(256)) * 8),
    "text": content(lambda _: b"not what you think\n" * 3),
    "DER": content(der_of),
    "garbled": content(lambda pem: pem[:80] + b"????" + pem[84:]),
    "an empty block": content(
        lambda pem: pem[: pem.index(b"\n") + 1] + pem[pem.rindex(b"-----E") :]
    ),
    "another type of PEM": content(
        lambda _: armoured("X9.42 DH PARAMETERS", b"\x30\x03\x02\x01\x05")
    ),
    "a public key": content(
        lambda _: (
            new_key("ec")
            .public_key()
            .public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    ),
    "directory": as_directory,
    "unreadable": unreadable,
    "pipe": as_pipe,
}


def with_odd(**fields: bytes) -> Spoil:
    """One more certificate, odd in these fields of its bytes."""
    return content(lambda pem: pem + armoured("CERTIFICATE", odd(**fields)))


INTEGER, BIT_STRING, SEQUENCE = 0x02, 0x03, 0x30
VERSION = 0xA0
BROKEN = extension(ExtensionOID.BASIC_CONSTRAINTS, b"\x04\x01")
UNKNOWN_KEY = tlv(
    SEQUENCE,
    tlv(SEQUENCE, oid(x509.ObjectIdentifier("1.2.840.113556.1.8000.1"))),
    tlv(BIT_STRING, b"\0\1"),
)

ONLY_CERTIFICATES: dict[str, Spoil] = {
    "a key": content(lambda _: Authority.create().key_pem()),
    "a revocation list": content(
        lambda _: Authority.create().empty_crl().public_bytes(Encoding.PEM)
    ),
    "cut off in the second": content(lambda pem: pem + pem[: len(pem) // 2]),
    "a second that is none": content(lambda pem: pem + armoured("CERTIFICATE", b"\x30\x00")),
    "a broken extension": with_odd(extensions=with_extensions(BROKEN)),
    "extensions twice": with_odd(extensions=with_extensions(FOR_CLIENTS, FOR_CLIENTS)),
    "a broken constraint": with_odd(
        extensions=with_extensions(extension(ExtensionOID.NAME_CONSTRAINTS, b"\x30\x02\x05\x00"))
    ),
    "no known version": with_odd(version=tlv(VERSION, tlv(INTEGER, b"\x07"))),
    "dates that are none": with_odd(validity=tlv(SEQUENCE, *2 * [tlv(0x18, b"20260230000000Z")])),
    "an unknown key": with_odd(key=UNKNOWN_KEY),
    "a name that is none": with_odd(subject=name((0x0C, b"\xff\xfe"))),
}
# OpenSSL reads these; this library reads or refuses them, depending on its version.
PERHAPS: dict[str, Spoil] = {
    "a negative serial": with_odd(serial=tlv(INTEGER, b"\x80\x01")),
    "a serial of 0": with_odd(serial=tlv(INTEGER, b"\0")),
    "a huge serial": with_odd(serial=tlv(INTEGER, b"\x7f" * 400)),
    "an empty issuer": with_odd(issuer=tlv(SEQUENCE)),
    "no extensions": with_odd(extensions=b""),
}
ONLY_KEYS: dict[str, Spoil] = {
    "a certificate": content(lambda _: Authority.create().certificate_pem()),
    "an encrypted key": content(
        lambda _: new_key("ec").private_bytes(
            Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    ),
    "another key": content(lambda _: Authority.create().key_pem()),
}
ONLY_LISTS: dict[str, Spoil] = {
    "a certificate": content(lambda _: Authority.create().certificate_pem()),
    "another CA's": content(lambda _: Authority.create().empty_crl().public_bytes(Encoding.PEM)),
    "cut off in the second": content(lambda pem: pem + pem[: len(pem) // 2]),
    "a second that is none": content(lambda pem: pem + armoured("X509 CRL", b"\x30\x00")),
}

CASES = [
    pytest.param(setting, file, spoil, id=f"{setting}: {file} {kind}")
    for files, kinds in (
        (CERTIFICATES, ANY | ONLY_CERTIFICATES),
        (KEYS, ANY | ONLY_KEYS),
        (LISTS, ANY | ONLY_LISTS),
    )
    for setting, file in files.items()
    for kind, spoil in kinds.items()
]


def settings_of(certs: Path) -> Settings:
    file = certs.parent / "config.yaml"
    file.write_text(yaml.safe_dump(all_settings(certs)))
    return loader.load(file, {})


@pytest.fixture
def own(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "certs"))


# The settings that may be named: those that are read together.
TOGETHER = {
    "tls.certificate": {"tls.certificate", "tls.private_key"},
    "tls.private_key": {"tls.certificate", "tls.private_key"},
    "management.certificate": {"management.certificate", "management.private_key"},
    "management.private_key": {"management.certificate", "management.private_key"},
}


@pytest.mark.parametrize(("setting", "file", "spoil"), CASES)
def test_a_bad_file_is_one_sentence(own: Path, setting: str, file: str, spoil: Spoil) -> None:
    """It names the key and the file; nothing of the file is used. Never another error."""
    settings = settings_of(own)
    before = load_credentials(settings, None)
    path = own / file
    spoil(path, path.read_bytes())
    with pytest.raises(ConfigError) as caught:
        load_credentials(settings, before.anchors)
    said = str(caught.value)
    assert said.partition(": ")[0] in TOGETHER.get(setting, {setting})
    assert str(path) in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("a broken extension", "asn1"),
        ("no known version", "version"),
        ("cut off in the second", "PEM"),
    ],
)
def test_of_several_certificates_the_bad_one_is_named(own: Path, kind: str, why: str) -> None:
    """By its place in the file, with what is wrong with it."""
    path = own / "ca.crt"
    spoil = ONLY_CERTIFICATES[kind]
    spoil(path, path.read_bytes())
    with pytest.raises(ConfigError, match=rf"cannot be read \(number 2: .*{why}"):
        load_credentials(settings_of(own), None)


@pytest.mark.parametrize("file", CERTIFICATES.values())
@pytest.mark.parametrize("spoil", PERHAPS.values(), ids=PERHAPS.keys())
def test_an_odd_certificate_is_read_or_refused(own: Path, file: str, spoil: Spoil) -> None:
    """As the library can; what it can read is good enough."""
    settings = settings_of(own)
    spoil(own / file, (own / file).read_bytes())
    try:
        keys = load_credentials(settings, None)
    except ConfigError as error:
        assert str(own / file) in str(error)
    else:
        assert any(validity.file == str(own / file) for validity in keys.validities)


def test_the_good_files_are_all_read(own: Path) -> None:
    """Those that the tests above spoil are the ones that are watched."""
    settings = settings_of(own)
    assert load_credentials(settings, None).signing is not None
    spoiled = [*CERTIFICATES.values(), *KEYS.values(), *LISTS.values()]
    assert sorted(credential_files(settings)) == sorted(own / file for file in spoiled)


@pytest.mark.parametrize("setting", ["tls.certificate", "tls.client_ca", "tls.private_key"])
def test_a_file_that_vanishes_while_it_is_read_is_one_sentence(
    own: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """As where all are renewed one by one: each is opened more than once."""
    settings = settings_of(own)
    before = load_credentials(settings, None)
    path = own / (CERTIFICATES | KEYS)[setting]

    def read_and_lose(named: str, file: Path) -> tuple[x509.Certificate, ...]:
        found = read_certificates(named, file)
        if named == "tls.client_ca":  # the last one to be looked at
            path.unlink()
        return found

    monkeypatch.setattr(tls_contexts, "read_certificates", read_and_lose)
    with pytest.raises(ConfigError, match=r"^tls\.\w+: (cannot read|no file) /") as caught:
        load_credentials(settings, before.anchors)
    assert str(path) in str(caught.value)


# ------------------------------------------------------------------- the wrong kind of a file


def as_pkcs12(own: Path) -> bytes:
    key, chain = own / "server.key", own / "server.crt"
    command: list[str | Path] = ["openssl", "pkcs12", "-export", "-inkey", key, "-in", chain]
    command += ["-passout", "pass:"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def encrypted(own: Path) -> bytes:
    key = serialization.load_pem_private_key((own / "server.key").read_bytes(), None)
    return key.private_bytes(
        Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def request(own: Path) -> bytes:
    key = new_key("ec")
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return asked.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def openssh(_: Path) -> bytes:
    return new_key("ec").private_bytes(
        Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("file", "make", "said"),
    [
        ("server.crt", lambda own: (own / "server.key").read_bytes(), "are the two files swapped?"),
        ("server.key", lambda own: (own / "server.crt").read_bytes(), "are the two files swapped?"),
        ("server.crt", as_pkcs12, "is a PKCS#12 file, not PEM: `openssl pkcs12 -in "),
        ("server.key", as_pkcs12, "is a PKCS#12 file, not PEM: `openssl pkcs12 -in "),
        ("server.crt", lambda own: der_of((own / "server.crt").read_bytes()), "certificate in DER"),
        ("server.key", lambda own: der_of((own / "server.key").read_bytes()), "private key in DER"),
        ("ca.crt", lambda own: der_of((own / "ca.crt").read_bytes()), "is a certificate in DER"),
        ("server.key", encrypted, "is an encrypted key, and the server cannot ask"),
        ("server.crt", request, "holds a certificate request, which a CA has yet to sign, not"),
        ("server.crt", lambda own: (own / "ca.crl").read_bytes(), "certificate revocation list"),
        ("server.crt", openssh, "holds an OpenSSH key, not a certificate in PEM"),
        ("server.key", openssh, "holds an OpenSSH key, not a private key in PEM"),
        ("server.crt", lambda own: b"", "holds nothing, not a certificate in PEM"),
        ("server.key", lambda own: b"", "holds nothing, not a private key in PEM"),
        ("server.key", lambda own: (own / "client.key").read_bytes(), "is not the key of"),
        ("announcer.key", encrypted, "announce.signing_key: "),
        ("admin.key", encrypted, "management.private_key: "),
    ],
)
def test_each_wrong_kind_of_a_file_has_its_own_words(
    own: Path, file: str, make: Callable[[Path], bytes], said: str
) -> None:
    """With the command that mends it, which is tried here."""
    settings = settings_of(own)
    path = own / file
    replace(path, make(own))
    with pytest.raises(ConfigError) as caught:
        load_credentials(settings, None)
    message = str(caught.value)
    assert said in message
    command = re.search(r"`(openssl [^`]+)`", message)
    if command is not None:
        words = [*command[1].split(), *(["-passin", "pass:secret"] if make is encrypted else [])]
        words += ["-passin", "pass:"] if make is as_pkcs12 else []
        subprocess.run(words, capture_output=True, check=True)
        path.with_suffix(".pem").replace(path)
        if file == "announcer.key":
            return  # the key of server.crt
        load_credentials(settings, None)


@pytest.mark.parametrize("file", CERTIFICATES.values())
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_request_beside_a_certificate_is_ignored(own: Path, file: str, first: bool) -> None:
    """OpenSSL ignores it, too."""
    path = own / file
    parts = (request(own), path.read_bytes())
    replace(path, b"".join(parts if first else reversed(parts)))
    load_credentials(settings_of(own), None)


def test_a_clients_certificate_is_refused_for_a_server(own: Path) -> None:
    """No client accepts it; the sentence says which command makes a right one."""
    settings = settings_of(own)
    for suffix in (".crt", ".key"):
        shutil.copy(own / f"client{suffix}", own / f"server{suffix}")
    with pytest.raises(ConfigError, match=r"^tls.certificate: .* is not for a server") as caught:
        load_credentials(settings, None)
    command = "status-certs server --name localhost --force"
    assert command.replace("localhost", "NAME") in str(caught.value)
    assert certs_gen([*command.split()[1:], "--out", str(own)]) == 0
    load_credentials(settings, None)


def test_with_an_expired_certificate_the_server_starts_and_is_not_ready(
    own: Path, tmp_path: Path, database_url: str
) -> None:
    """As nginx and PostgreSQL start. An error in the log; a renewed file needs no restart."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=667)
    authority = Authority.load(own)
    expired = authority.issue_server(["localhost"], [LOOPBACK], now=then, days=1)
    shutil.copy(own / "server.crt", own / "good.crt")
    shutil.copy(own / "server.key", own / "good.key")
    replace(own / "server.key", expired.key_pem())
    replace(own / "server.crt", expired.certificate_pem())
    with running_server(tmp_path / "server", own, database_url, **all_settings(own)) as server:
        [line] = [each for each in server.events("check failing") if each["level"] == "error"]
        assert line["check"] == "certificate"
        assert line["reason"].endswith("(tornado_status server) expired 666 days ago")
        context = ssl.create_default_context(cafile=str(own / "ca.crt"))
        connection = http.client.HTTPSConnection(
            "localhost", server.management_port, context=context, timeout=PATIENCE_S
        )
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 503
        connection.close()
        (own / "good.key").replace(own / "server.key")
        (own / "good.crt").replace(own / "server.crt")
        wait_until(lambda: server.events("certificates and keys reloaded"), "the reload")
        assert server.request("POST", "/api/client").status == 204


# --------------------------------------------------------------------------- in a running server


@pytest.fixture(scope="module")
def served(
    good: Path, postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """One server for all of them: whatever its files went through, it goes on."""
    own = Path(shutil.copytree(good, tmp_path_factory.mktemp("served") / "certs"))
    rows(postgres, "CREATE DATABASE bad_files")
    url = postgres.replace("/postgres?", "/bad_files?")
    directory = tmp_path_factory.mktemp("server")
    with running_server(directory, own, url, **all_settings(own)) as server:
        yield server, own


def reloads(server: Server) -> tuple[int, int]:
    """How many went well, and how many did not."""
    return (
        len(server.events("certificates and keys reloaded")),
        len(server.events("reload failed, keeping the previous certificates")),
    )


def more(server: Server, which: int, count: int) -> bool:
    return reloads(server)[which] > count


FILES = [
    pytest.param(file, kinds, id=file)
    for files, kinds in (
        (CERTIFICATES, ANY | ONLY_CERTIFICATES),
        (KEYS, ANY | ONLY_KEYS),
        (LISTS, ANY | ONLY_LISTS),
    )
    for file in files.values()
]
IN_A_SERVER = ["directory", "pipe", "another type of PEM", "a broken extension", "truncated"]


@pytest.mark.once  # it waits for reloads; what the files are is judged above
@pytest.mark.parametrize(("file", "kinds"), FILES)
def test_the_old_state_stays_whatever_becomes_of_a_file(
    served: tuple[Server, Path], file: str, kinds: dict[str, Spoil]
) -> None:
    """One line says why; who is connected and who comes are served; the next good one is read."""
    server, own = served
    path = own / file
    before = path.read_bytes()
    connection = server.connect("operator")
    for kind in IN_A_SERVER:
        if kind not in kinds:
            continue
        good_ones, bad_ones = reloads(server)
        kinds[kind](path, before)
        wait_until(functools.partial(more, server, 1, bad_ones), "the refusal")
        assert reloads(server)[0] == good_ones
        assert (
            str(path)
            in server.events("reload failed, keeping the previous certificates")[-1]["reason"]
        )
        assert exchange(connection, "POST", "/api/client").status == 204
        assert server.request("POST", "/api/client").status == 204
        if path.is_dir():
            path.rmdir()
        replace(path, before)
        wait_until(functools.partial(more, server, 0, good_ones), "the good file")
    connection.close()
    assert server.process.poll() is None


AT_THE_START = [
    ("ca.crt", "a broken extension"),
    ("ca.crt", "pipe"),
    ("server.crt", "directory"),
    ("server.crt", "an unknown key"),
    ("server.key", "DER"),
    ("ca.crl", "cut off in the second"),
    ("announcer.key", "binary"),
    ("announcer.crt", "no known version"),
    ("next.crt", "dates that are none"),
    ("admin.crt", "empty"),
    ("admin.key", "unreadable"),
]


@pytest.mark.parametrize(("file", "kind"), AT_THE_START)
def test_at_the_start_a_bad_file_is_one_line(
    own: Path, tmp_path: Path, database_url: str, file: str, kind: str
) -> None:
    """And exit status 2, before anything is opened."""
    path = own / file
    (ANY | ONLY_CERTIFICATES | ONLY_LISTS)[kind](path, path.read_bytes())
    with running_server(
        tmp_path / "server", own, database_url, wait=False, **all_settings(own)
    ) as server:
        assert server.process.wait(PATIENCE_S) == 2
        said = server.log.wait_end().splitlines()
    assert len(said) == 1
    assert said[0].startswith("tornado-status: ")
    assert str(path) in said[0]


# ------------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize(
    "fields",
    [
        {"key": UNKNOWN_KEY},
        {"version": tlv(VERSION, tlv(INTEGER, b"\x07"))},
        {"extensions": with_extensions(BROKEN)},
        {"extensions": with_extensions(FOR_CLIENTS, FOR_CLIENTS)},
    ],
    ids=["key", "version", "extension", "twice"],
)
def test_a_listener_refuses_published_certificates_that_it_cannot_read(
    fields: dict[str, bytes],
) -> None:
    """Others that the server publishes are trusted all the same."""
    authority = Authority.create()
    good = authority.issue_announcer().certificate_pem().decode()
    keys = KnownAnnouncers([authority.certificate])
    refusals = keys.replace_published([armoured("CERTIFICATE", odd(**fields)).decode(), good])
    assert len(refusals) == 1
    assert len(keys.known) == 1
