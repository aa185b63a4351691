"""certs_gen: what it issues, what it writes, and what it refuses."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certs_gen import cli, development, key_files
from certs_gen.authority import (
    CLOCK_SKEW,
    Authority,
    Credential,
    KeyType,
    common_name,
    dns_name,
    ip_address,
    leaf_extensions,
    new_key,
)
from tests.support.certs_tool import (
    FULL,
    KILLED,
    ROOT,
    WAITING,
    Result,
    certificate_of,
    contents,
    openssl,
    python,
)
from tornado_status.errors import ConfigError, IdentityError
from tornado_status.model.email_address import parse_email
from tornado_status.pki import announcer_keys
from tornado_status.pki.identity import Identity, identify

STEMS = ("ca", "server", "client", "bad_client", "operator", "announcer")
SET = {f"{stem}.{suffix}" for stem in STEMS for suffix in ("crt", "key")} | {"ca.crl"}
NOBODY = 65534  # the uid without rights on every Linux


class Run(Protocol):
    def __call__(self, *arguments: str | Path) -> Result: ...


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process."""

    def call(*arguments: str | Path) -> Result:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="module", params=["ec", "rsa"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A development set of each key type. Read only."""
    out: Path = tmp_path_factory.mktemp("sets") / request.param
    assert cli.main(["--out", str(out), "--key-type", request.param]) == 0
    return out


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that no other module adds to: tests here compare whole sets."""
    directory = tmp_path_factory.mktemp("certs")
    assert cli.main(["--out", str(directory)]) == 0
    return directory


@pytest.fixture
def own_certs(certs: Path, tmp_path: Path) -> Path:
    """A development set that a test may change."""
    return shutil.copytree(certs, tmp_path / "certs")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def der(credential: Credential) -> bytes:
    return credential.certificate.public_bytes(serialization.Encoding.DER)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names_in(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def belong_together(certificate: Path, key: Path) -> bool:
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    return private.public_key() == certificate_of(certificate).public_key()


def test_a_development_set_is_complete_and_listed_line_by_line(run: Run, tmp_path: Path) -> None:
    """One command makes the whole set, names every file of it and says what it is for."""
    done = run("--out", tmp_path / "certs")
    assert (done.status, done.err) == (0, "")
    assert set(contents(tmp_path / "certs")) == SET
    *lines, last = done.out.splitlines()
    assert {Path(line.split(" ")[0]) for line in lines} == {tmp_path / "certs" / n for n in SET}
    assert "development" in last


def test_it_runs_as_a_module_and_writes_below_the_current_directory(tmp_path: Path) -> None:
    """`python -m certs_gen` writes into certs/ where it is called, wherever it is installed."""
    done = python("-m", "certs_gen", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert set(contents(tmp_path / "certs")) == SET
    again = python("-m", "certs_gen", cwd=tmp_path)
    assert again.refused().startswith("status-certs: error: certs/ca.crt, ")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o377])
def test_keys_are_for_their_owner_whatever_the_umask(run: Run, tmp_path: Path, umask: int) -> None:
    """A key can be read by its owner alone, the CA's not even be written; the rest is public."""
    out = tmp_path / "certs"
    out.mkdir()
    previous = os.umask(umask)
    try:
        assert run("--out", out).status == 0
        assert run("client", "a@example.com", "--pkcs12", "--out", out).status == 0
        assert run("server", "--force", "--out", out).status == 0
    finally:
        os.umask(previous)
    for name in contents(out):
        private = 0o400 if name == "ca.key" else 0o600
        public = 0o644 & ~umask
        assert mode(out / name) == (public if name.endswith((".crt", ".crl")) else private), name


def test_a_new_directory_can_be_read_by_the_server_s_own_user(run: Run, tmp_path: Path) -> None:
    """The server may run as another user: the directory is open, the keys in it are not."""
    previous = os.umask(0o022)
    try:
        assert run("--out", tmp_path / "new" / "certs").status == 0
    finally:
        os.umask(previous)
    assert mode(tmp_path / "new" / "certs") == 0o755


def test_private_keys_are_unencrypted_pkcs8_of_the_chosen_type(made: Path) -> None:
    """A server starts with its key alone; the announcer's is always Ed25519."""
    for stem in STEMS:
        pem = (made / f"{stem}.key").read_bytes()
        assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n"), stem
        key = serialization.load_pem_private_key(pem, password=None)
        if stem == "announcer":
            assert isinstance(key, ed25519.Ed25519PrivateKey)
        elif made.name == "ec":
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            assert isinstance(key.curve, ec.SECP256R1)
        else:
            assert isinstance(key, rsa.RSAPrivateKey)
            assert key.key_size == 3072


def test_every_key_belongs_to_the_certificate_beside_it(made: Path) -> None:
    """A pair of files is one identity."""
    for stem in STEMS:
        assert belong_together(made / f"{stem}.crt", made / f"{stem}.key"), stem


def test_every_certificate_carries_the_extensions_of_its_purpose(made: Path) -> None:
    """X.509 v3, each certificate good for exactly one thing, and linked to its issuer by keys."""
    purposes = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
        "bad_client": ExtendedKeyUsageOID.CLIENT_AUTH,
        "operator": ExtendedKeyUsageOID.CLIENT_AUTH,
        "announcer": announcer_keys.PURPOSE,
    }
    ca = certificate_of(made / "ca.crt")
    for stem in STEMS:
        certificate = certificate_of(made / f"{stem}.crt")
        extensions = certificate.extensions
        assert certificate.version is x509.Version.v3
        assert certificate.issuer == ca.subject

        subject_key = extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        assert subject_key.value == x509.SubjectKeyIdentifier.from_public_key(
            certificate.public_key()
        )
        issuer_key = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        assert (
            issuer_key.value.key_identifier
            == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        )

        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value.ca is (stem == "ca")
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert usage.value.digital_signature is (stem != "ca")
        assert usage.value.key_cert_sign is usage.value.crl_sign is (stem == "ca")

        if stem == "ca":
            assert constraints.value.path_length == 1
            with pytest.raises(x509.ExtensionNotFound):
                extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        else:
            purpose = extensions.get_extension_for_class(x509.ExtendedKeyUsage)
            assert list(purpose.value) == [purposes[stem]]


def test_the_certificates_name_whom_they_are_for(made: Path) -> None:
    """Clients are named by their e-mail, in CN and subjectAltName; servers by names and IPs."""
    for stem, email in {
        "client": "valid_user@example.com",
        "operator": "operator@example.com",
    }.items():
        certificate = certificate_of(made / f"{stem}.crt")
        assert certificate.subject == common_name(email)
        assert names_in(certificate).get_values_for_type(x509.RFC822Name) == [email]
    assert certificate_of(made / "bad_client.crt").subject == common_name("not_an_email")
    assert certificate_of(made / "ca.crt").subject == common_name("tornado_status development CA")
    hosts = names_in(certificate_of(made / "server.crt"))
    assert set(hosts.get_values_for_type(x509.DNSName)) == {"localhost", "server"}
    assert set(hosts.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    }


def test_the_server_s_judgement_of_each_certificate_is_the_expected_one(made: Path) -> None:
    """Of the set only client and operator may check in; bad_client shows the refusal."""

    def judge(stem: str) -> str:
        certificate = certificate_of(made / f"{stem}.crt")
        try:
            return identify(certificate.public_bytes(serialization.Encoding.DER)).email
        except IdentityError as error:
            return f"{error.status} {error.detail}"

    assert {stem: judge(stem) for stem in STEMS} == {
        "ca": "400 CN must be a valid email address",
        "server": "400 CN must be a valid email address",
        "client": "valid_user@example.com",
        "bad_client": "400 CN must be a valid email address",
        "operator": "operator@example.com",
        "announcer": "400 CN must be a valid email address",
    }


def test_serial_numbers_are_random(made: Path) -> None:
    """Two sets or two certificates never share a serial number, and none can be guessed."""
    serials = {certificate_of(made / f"{stem}.crt").serial_number for stem in STEMS}
    assert len(serials) == len(STEMS)
    assert all(serial.bit_length() > 96 for serial in serials)


@pytest.mark.parametrize(
    ("stem", "purpose"),
    [("client", "sslclient"), ("operator", "sslclient"), ("server", "sslserver")],
)
def test_openssl_verifies_the_chain_strictly(made: Path, stem: str, purpose: str) -> None:
    """Issued certificates pass OpenSSL's strictest check for their purpose."""
    strict = ("verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", made / "ca.crt")
    openssl(*strict, "-purpose", purpose, made / f"{stem}.crt")
    openssl(*strict, "-purpose", "any", made / "announcer.crt")
    for host in ("localhost", "server") if stem == "server" else ():
        openssl(*strict, "-verify_hostname", host, made / "server.crt")
    for ip in ("127.0.0.1", "::1") if stem == "server" else ():
        openssl(*strict, "-verify_ip", ip, made / "server.crt")


@pytest.mark.parametrize(
    ("stem", "purpose"),
    [
        ("client", "sslserver"),
        ("server", "sslclient"),
        *(("announcer", p) for p in ("sslclient", "sslserver", "smimesign", "smimeencrypt")),
    ],
)
def test_no_certificate_is_good_for_another_purpose(made: Path, stem: str, purpose: str) -> None:
    """A client cannot pose as the server, and an announcer's key opens no TLS and signs no mail."""
    with pytest.raises(AssertionError, match="unsuitable certificate purpose"):
        openssl("verify", "-CAfile", made / "ca.crt", "-purpose", purpose, made / f"{stem}.crt")


def test_openssl_verifies_the_empty_crl(made: Path) -> None:
    """The CRL is a v2 one, numbered, signed by the CA, valid for 30 days, and empty."""
    text = openssl("crl", "-in", made / "ca.crl", "-CAfile", made / "ca.crt", "-noout", "-text")
    assert "Version 2" in text
    assert "No Revoked Certificates" in text
    crl = x509.load_pem_x509_crl((made / "ca.crl").read_bytes())
    ca = certificate_of(made / "ca.crt")
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    public_key = ca.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    assert crl.is_signature_valid(public_key)
    assert crl.issuer == ca.subject
    number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert number // 1_000_000 == (crl.last_update_utc + CLOCK_SKEW).timestamp()
    assert (
        crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert crl.next_update_utc is not None
    assert crl.next_update_utc - crl.last_update_utc == datetime.timedelta(days=30) + CLOCK_SKEW
    for stem in ("client", "server"):
        openssl(
            *("verify", "-x509_strict", "-crl_check", "-CAfile", made / "ca.crt"),
            *("-CRLfile", made / "ca.crl", made / f"{stem}.crt"),
        )


def server_context(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return loaded(context, directory, "server")


def client_context(directory: Path, stem: str) -> ssl.SSLContext:
    return loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), directory, stem)


def loaded(context: ssl.SSLContext, directory: Path, stem: str) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.load_verify_locations(directory / "ca.crt")
    context.load_cert_chain(directory / f"{stem}.crt", directory / f"{stem}.key")
    return context


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake in memory; both ends when it is done."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = list(ends)
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    return ends


@pytest.mark.parametrize("host", ["localhost", "server", "127.0.0.1", "::1"])
def test_server_and_client_shake_hands_over_mutual_tls(made: Path, host: str) -> None:
    """The set works in TLS 1.3 at once: both sides prove who they are, checked strictly."""
    client, server = shake_hands(server_context(made), client_context(made, "client"), host)
    assert client.version() == server.version() == "TLSv1.3"
    peer = server.getpeercert(binary_form=True)
    assert peer is not None
    assert identify(peer).email == "valid_user@example.com"


@pytest.mark.parametrize("stem", ["announcer", "server"])
def test_what_is_not_a_client_s_is_refused_in_the_handshake(made: Path, stem: str) -> None:
    """A stolen announcer's or server's key does not even get as far as a request."""
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        shake_hands(server_context(made), client_context(made, stem), "localhost")


def test_a_client_of_another_ca_is_refused_though_the_ca_has_the_same_name(
    own_certs: Path, run: Run, tmp_path: Path
) -> None:
    """With --force there is a new CA, and what the old one issued is void."""
    old = shutil.copytree(own_certs, tmp_path / "old")
    assert run("--force", "--out", own_certs).status == 0
    stranger = client_context(old, "client")
    stranger.load_verify_locations(own_certs / "ca.crt")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(own_certs), stranger, "localhost")


def test_validity_is_ten_years_for_the_ca_and_one_for_the_rest(made: Path) -> None:
    """From five minutes ago, for devices whose clock is a little behind."""
    for stem in STEMS:
        certificate = certificate_of(made / f"{stem}.crt")
        days = 3650 if stem == "ca" else 365
        span = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert span == datetime.timedelta(days=days, minutes=5), stem
        assert certificate.not_valid_before_utc < datetime.datetime.now(datetime.UTC)


def test_days_are_those_of_the_leaves(run: Run, tmp_path: Path) -> None:
    """--days is for what the CA issues; the CA itself stays."""
    out = tmp_path / "certs"
    assert run("--out", out, "--days", "7").status == 0
    assert run("client", "a@example.com", "--days", "8", "--out", out).status == 0
    spans = {
        path.stem: (certificate_of(path).not_valid_after_utc - CLOCK_SKEW)
        - certificate_of(path).not_valid_before_utc
        for path in out.glob("*.crt")
    }
    assert {stem: span.days for stem, span in spans.items()} == {
        **dict.fromkeys(STEMS, 7),
        "ca": 3650,
        "a@example.com": 8,
    }


def test_a_leaf_never_outlives_its_ca() -> None:
    """A leaf ends no later than its CA; an expired CA issues nothing."""
    made_at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    ca = Authority.create(days=30, now=made_at)
    leaf = ca.issue_client("a@example.com", days=365, now=made_at)
    assert leaf.certificate.not_valid_after_utc == ca.certificate.not_valid_after_utc
    with pytest.raises(ConfigError, match="expired on 2026-01-31"):
        ca.issue_announcer(now=made_at + datetime.timedelta(days=30))


@pytest.mark.parametrize("days", ["0", "-1", "3651", "1.5", "x", "9" * 99, ""])
def test_days_out_of_range_are_refused(run: Run, tmp_path: Path, days: str) -> None:
    """One sentence says what --days may be, and nothing is written."""
    assert "expected 1-3650 days" in run("--out", tmp_path, f"--days={days}").refused()
    assert contents(tmp_path) == {}


def test_a_set_is_not_made_where_any_file_of_it_is(run: Run, tmp_path: Path) -> None:
    """The refusal says what is there and how to replace it, and touches nothing."""
    for name in ("server.key", "ca.crl"):
        (tmp_path / name).write_bytes(b"mine")
    error = run("--out", tmp_path).refused()
    assert "server.key" in error
    assert "ca.crl" in error
    assert "client" not in error
    assert "--force" in error
    assert contents(tmp_path) == {"server.key": b"mine", "ca.crl": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        ((), "ca.key"),
        (("server",), "server.crt"),
        (("client", "a@example.com"), "a@example.com.key"),
        (("client", "a@example.com", "--pkcs12"), "a@example.com.p12"),
        (("announcer",), "announcer.key"),
        (("announcer", "--name", "next"), "next.crt"),
    ],
)
def test_without_force_every_file_stays_byte_for_byte(
    run: Run, own_certs: Path, arguments: tuple[str, ...], there: str
) -> None:
    """One existing file is enough to leave all of them alone, with any options."""
    (own_certs / there).unlink(missing_ok=True)
    (own_certs / there).write_bytes(b"precious")
    before = contents(own_certs)
    error = run(*arguments, "--out", own_certs).refused()
    assert there in error
    assert "--force" in error
    assert contents(own_certs) == before


def test_a_file_that_appears_in_the_last_moment_is_not_overwritten(
    run: Run, own_certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and writing others may write, too; the file system itself decides."""
    (own_certs / "a@example.com.crt").write_bytes(b"precious")
    before = contents(own_certs)
    monkeypatch.setattr(
        key_files, "existing", lambda paths: [path for path in paths if path.stem == "ca"]
    )
    error = run("client", "a@example.com", "--out", own_certs).refused()
    assert "a@example.com.crt exists already" in error
    assert contents(own_certs) == before


def test_a_dangling_link_is_not_written_through(run: Run, tmp_path: Path) -> None:
    """A link in the way is a file that exists: no key is written to where it points."""
    out = tmp_path / "certs"
    out.mkdir()
    (out / "client.key").symlink_to(tmp_path / "elsewhere")
    assert "client.key" in run("--out", out).refused()
    assert not (tmp_path / "elsewhere").exists()


def test_force_replaces_the_whole_set_with_a_new_ca(run: Run, own_certs: Path) -> None:
    """All of the set is new, the read-only CA key included; other files stay."""
    (own_certs / "a@example.com.crt").write_bytes(b"other")
    before = contents(own_certs)
    assert run("--force", "--out", own_certs).status == 0
    after = contents(own_certs)
    assert set(after) == SET | {"a@example.com.crt"}
    assert {name for name in after if after[name] == before[name]} == {"a@example.com.crt"}
    assert mode(own_certs / "ca.key") == 0o400
    openssl("verify", "-CAfile", own_certs / "ca.crt", own_certs / "client.crt")


@pytest.mark.parametrize(
    ("arguments", "replaced"),
    [
        (("server", "--name", "a.example.com"), {"server.crt", "server.key"}),
        (("announcer",), {"announcer.crt", "announcer.key"}),
    ],
)
def test_force_replaces_one_pair_with_the_same_ca(
    run: Run, own_certs: Path, arguments: tuple[str, ...], replaced: set[str]
) -> None:
    """Renewing one certificate leaves all others as they are."""
    before = contents(own_certs)
    assert run(*arguments, "--force", "--out", own_certs).status == 0
    after = contents(own_certs)
    assert {name for name in after if after[name] != before.get(name)} == replaced
    stem = arguments[0]
    assert belong_together(own_certs / f"{stem}.crt", own_certs / f"{stem}.key")
    openssl("verify", "-CAfile", own_certs / "ca.crt", own_certs / f"{stem}.crt")


def test_if_missing_makes_a_set_once_and_then_is_quiet(run: Run, tmp_path: Path) -> None:
    """`make run` and containers call it: a set is made for the first start, and kept."""
    out = tmp_path / "certs"
    assert run("--if-missing", "--out", out).status == 0
    before = contents(out)
    assert run("--if-missing", "--out", out) == Result(0, "", "")
    assert contents(out) == before


def test_if_missing_refuses_half_a_set(run: Run, own_certs: Path) -> None:
    """Half a set is a question for a human: the sentence says what is not there."""
    (own_certs / "client.key").unlink()
    before = contents(own_certs)
    error = run("--if-missing", "--out", own_certs).refused()
    assert "client.key" in error
    assert "server.key" not in error
    assert "--force" in error
    assert contents(own_certs) == before


def test_containers_that_start_at_once_share_one_set(tmp_path: Path) -> None:
    """Several starts on one volume make one set, and all of them go on."""
    out = tmp_path / "certs"
    command = [sys.executable, "-m", "certs_gen", "--if-missing", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    starts = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    ends = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0] * 4, ends
    assert sorted(len(out.splitlines()) for out, _ in ends) == [0, 0, 0, len(SET) + 1]
    for stem in STEMS:
        openssl("verify", "-CAfile", out / "ca.crt", out / f"{stem}.crt")


def test_a_run_waits_for_the_other_one_before_it_looks(tmp_path: Path) -> None:
    """A start in the middle of another one's writing finds a complete set, not half of one."""
    with key_files.locked(tmp_path):
        second = subprocess.Popen(
            [sys.executable, "-c", WAITING, "--if-missing", "--out", str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stdout is not None
        said = second.stdout.readline()
        made = development.make(tmp_path, days=1, key_type="ec")
        for file in made:
            key_files.write([file], force=False)
    rest = second.communicate(timeout=60)
    assert (said, *rest, second.returncode) == ("waiting\n", "", "", 0)
    assert contents(tmp_path) == {file.path.name: file.content for file in made}


@pytest.mark.parametrize("arguments", [("server", "--force"), ("client", "new@example.com")])
def test_no_certificate_lies_beside_another_s_key_after_kill_dash_nine(
    certs: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Killed at whatever moment, it leaves a pair that belongs together, or no certificate."""
    stem = "server" if arguments[0] == "server" else arguments[1]
    deaths = 0
    while True:
        own_certs = shutil.copytree(certs, tmp_path / str(deaths))
        done = python("-c", KILLED, str(deaths), own_certs, *arguments, "--out", own_certs)
        if (own_certs / f"{stem}.crt").exists() and (own_certs / f"{stem}.crt").stat().st_size:
            assert belong_together(own_certs / f"{stem}.crt", own_certs / f"{stem}.key"), deaths
        if done.status == 0:
            break
        assert (done.status, done.err) == (9, "")
        deaths += 1
    assert deaths > 4  # directory, the CA's two files, the key, the certificate


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    """When the set does not fit, what was written of it is taken away again."""
    out = tmp_path / "certs"
    assert "cannot write it: File too large" in python("-c", FULL, "--out", out).refused()
    assert contents(out) == {}


@pytest.mark.parametrize("arguments", [(), ("server",)])
def test_a_full_disk_leaves_the_old_files_in_place(
    own_certs: Path, arguments: tuple[str, ...]
) -> None:
    """--force replaces nothing before everything new is safely on the disk."""
    before = contents(own_certs)
    error = python("-c", FULL, *arguments, "--force", "--out", own_certs).refused()
    assert "cannot write it: File too large" in error
    assert contents(own_certs) == before


# Works once as root, because that imports everything: this Python may be closed to others.
ORDINARY_USER = f"""
import contextlib, io, os, sys, tempfile
from certs_gen.cli import main
if os.geteuid() == 0:
    with tempfile.TemporaryDirectory() as rehearsal, contextlib.redirect_stdout(io.StringIO()):
        main(["--out", rehearsal])
    os.setgroups([])
    os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
    os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def user_directory() -> Iterator[Path]:
    """A directory of the user that `ORDINARY_USER` becomes; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def test_force_replaces_the_read_only_ca_key_without_being_root(user_directory: Path) -> None:
    """The CA's key is read-only for its owner, who can make a new set all the same."""
    out = user_directory / "certs"
    assert python("-c", ORDINARY_USER, "--out", out).status == 0
    before = contents(out)
    done = python("-c", ORDINARY_USER, "--force", "--out", out)
    assert (done.status, done.err) == (0, "")
    assert contents(out)["ca.key"] != before["ca.key"]


def test_a_directory_without_the_right_to_write_is_one_sentence(user_directory: Path) -> None:
    """It names the file that could not be written."""
    user_directory.chmod(0o555)
    error = python("-c", ORDINARY_USER, "--out", user_directory).refused()
    assert f"{user_directory}/ca.key: cannot write it: Permission denied" in error
    error = python("-c", ORDINARY_USER, "--out", user_directory / "certs").refused()
    assert "cannot make the directory: Permission denied" in error


def test_a_ca_key_of_somebody_else_is_one_sentence(user_directory: Path) -> None:
    """A user who cannot read the CA's key cannot issue with it, and is told so."""
    assert python("-c", ORDINARY_USER, "--out", user_directory).status == 0
    (user_directory / "ca.key").chmod(0)
    error = python(
        "-c", ORDINARY_USER, "client", "a@example.com", "--out", user_directory
    ).refused()
    assert f"{user_directory}/ca.key: cannot read the CA: Permission denied" in error


def test_a_file_where_the_directory_should_be_is_one_sentence(run: Run, tmp_path: Path) -> None:
    """--out names a directory."""
    (tmp_path / "certs").write_bytes(b"")
    assert "cannot make the directory" in run("--out", tmp_path / "certs").refused()
    assert "cannot make the directory" in run("--out", tmp_path / "certs" / "x").refused()
    (tmp_path / "ca.crt").mkdir()
    before = [path.name for path in tmp_path.iterdir()]
    assert "ca.crt: a directory" in run("--force", "--out", tmp_path).refused()
    assert [path.name for path in tmp_path.iterdir()] == before


def test_an_interrupt_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of making keys shows no traceback and leaves no file."""

    def interrupted(*_: object, **__: object) -> Authority:
        raise KeyboardInterrupt

    monkeypatch.setattr(Authority, "create", interrupted)
    assert run("--out", tmp_path) == Result(130, "", "status-certs: interrupted\n")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments", [("client", "a@example.com"), ("server",), ("announcer", "--name", "next")]
)
def test_without_a_ca_there_is_one_sentence(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """It says how to make one; no directory appears."""
    error = run(*arguments, "--out", tmp_path / "none").refused()
    assert "has no CA" in error
    assert f"status-certs --out {tmp_path / 'none'}" in error
    assert not (tmp_path / "none").exists()


def test_a_ca_that_cannot_issue_is_one_sentence(run: Run, own_certs: Path) -> None:
    """The sentence says which of the CA's two files is wrong, and how."""
    issue = ("client", "a@example.com", "--out", own_certs)
    good_key, good_certificate = (
        (own_certs / "ca.key").read_bytes(),
        (own_certs / "ca.crt").read_bytes(),
    )

    def with_key(pem: bytes) -> str:
        (own_certs / "ca.key").unlink()
        (own_certs / "ca.key").write_bytes(pem)
        return run(*issue).refused()

    assert "belongs to another certificate" in with_key((own_certs / "server.key").read_bytes())
    assert "ca.key: expected an unencrypted private key" in with_key(b"\xff\x00")
    encrypted = new_key("ec").private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    assert "ca.key: expected an unencrypted private key" in with_key(encrypted)
    exchange_only = b"MC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq"
    x25519 = b"-----BEGIN PRIVATE KEY-----\n" + exchange_only + b"\n-----END PRIVATE KEY-----\n"
    assert "ca.key: expected an EC, RSA or Ed25519 key" in with_key(x25519)
    (own_certs / "ca.key").unlink()
    assert "ca.key: cannot read the CA: No such file" in run(*issue).refused()
    (own_certs / "ca.key").write_bytes(good_key)

    (own_certs / "ca.crt").write_bytes((own_certs / "server.crt").read_bytes())
    assert "ca.crt and ca.key: not the certificate of a CA" in run(*issue).refused()
    (own_certs / "ca.crt").write_bytes(b"\xff\x00")
    assert "ca.crt: expected a certificate in PEM" in run(*issue).refused()
    (own_certs / "ca.crt").write_bytes(good_certificate)

    expired = Authority.create(days=1, now=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
    key_files.write(key_files.pair(own_certs, "ca", expired), force=True)
    assert "expired on 2020-01-02" in run(*issue).refused()
    assert not (own_certs / "a@example.com.crt").exists()


def test_a_ca_made_elsewhere_issues_too(run: Run, tmp_path: Path) -> None:
    """A CA that the openssl command made, of Ed25519 even, issues as ours does."""
    openssl(
        *("req", "-x509", "-newkey", "ed25519", "-noenc", "-subj", "/CN=Ours", "-days", "30"),
        *("-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"),
    )
    assert run("client", "a@example.com", "--out", tmp_path).status == 0
    openssl(
        *("verify", "-purpose", "sslclient"),
        *("-CAfile", tmp_path / "ca.crt", tmp_path / "a@example.com.crt"),
    )


def test_odd_certificates_can_be_made_on_top_of_the_library(authority: Authority) -> None:
    """An intermediate CA signs a client, and two common names fit in a subject."""
    now = datetime.datetime.now(datetime.UTC)
    key = new_key("ec")
    constraints: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(True, 0), True)]
    intermediate = Authority(
        authority.certify(
            key.public_key(),
            common_name("Intermediate"),
            constraints,
            not_before=now,
            not_after=now + datetime.timedelta(days=1),
        ),
        key,
    )
    leaf = intermediate.issue_client("a@example.com")
    leaf.certificate.verify_directly_issued_by(intermediate.certificate)
    intermediate.certificate.verify_directly_issued_by(authority.certificate)

    twice = x509.Name([*common_name("a@example.com"), *common_name("b@example.com")])
    odd = authority.certify(
        key.public_key(),
        twice,
        leaf_extensions([ExtendedKeyUsageOID.CLIENT_AUTH]),
        not_before=now,
        not_after=now + datetime.timedelta(days=1),
    )
    with pytest.raises(IdentityError, match="cn-count"):
        identify(odd.public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize("key_type", ["ec", "rsa"])
def test_a_client_is_issued_by_the_set_s_ca(run: Run, own_certs: Path, key_type: KeyType) -> None:
    """Two files, named by the e-mail, for one more user."""
    done = run("client", "Ada@Example.com", "--out", own_certs, "--key-type", key_type)
    assert done.status == 0
    stem = own_certs / "ada@example.com"
    assert [line.split(" ")[0] for line in done.out.splitlines()] == [f"{stem}.key", f"{stem}.crt"]
    assert belong_together(Path(f"{stem}.crt"), Path(f"{stem}.key"))
    openssl(
        *("verify", "-x509_strict", "-purpose", "sslclient"),
        *("-CAfile", own_certs / "ca.crt", f"{stem}.crt"),
    )
    subject = certificate_of(Path(f"{stem}.crt")).subject
    assert subject == common_name("ada@example.com")


def test_many_clients_are_issued_at_once(run: Run, own_certs: Path) -> None:
    """Each its own pair and its own password; an address that is given twice counts once."""
    emails = ("ada@example.com", "Bob@Example.com", "bob@example.com")
    done = run("client", *emails, "--pkcs12", "--out", own_certs)
    assert done.status == 0
    stems = ("ada@example.com", "bob@example.com")
    expected = [f"{stem}{suffix}" for stem in stems for suffix in (".key", ".crt", ".p12")]
    *lines, last = done.out.splitlines()
    assert [line.split(" ")[0] for line in lines] == [str(own_certs / name) for name in expected]
    assert last == "2 users, 6 files"
    assert len(set(re.findall(r"password (\S+)\)", done.out))) == 2
    for stem in stems:
        assert belong_together(own_certs / f"{stem}.crt", own_certs / f"{stem}.key")
        assert certificate_of(own_certs / f"{stem}.crt").subject == common_name(stem)


LIST = (
    "\ufeff# the team\r\n\r\nada@example.com\r\n  bob@example.com  \r\n\t# not yet: eve@example.com"
)


def test_clients_are_read_from_a_file(run: Run, own_certs: Path, tmp_path: Path) -> None:
    """One a line, with comments and empty lines, as an editor on Windows saves it too."""
    (tmp_path / "team.txt").write_bytes(LIST.encode())
    done = run("client", "carl@example.com", "--from", tmp_path / "team.txt", "--out", own_certs)
    assert done.out.splitlines()[-1] == "3 users, 6 files"
    made = {name for name in contents(own_certs) if "@" in name and name.endswith(".crt")}
    assert made == {f"{name}@example.com.crt" for name in ("ada", "bob", "carl")}


def test_clients_are_read_from_stdin(own_certs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "certs_gen", "client", "--from", "-", "--out", str(own_certs)],
        input=LIST.encode(),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"2 users, 4 files\n")


def test_all_clients_are_checked_before_one_is_written(
    run: Run, own_certs: Path, tmp_path: Path
) -> None:
    """A wrong line, with its number, or a file that exists: nothing is written."""
    assert run("client", "bob@example.com", "--out", own_certs).status == 0
    before = contents(own_certs)
    team = tmp_path / "team.txt"
    team.write_text("ada@example.com\n\nnot_an_email\nJo <jo@example.com>\n")
    error = run("client", "--from", team, "--out", own_certs).refused()
    assert f"--from: {team}, line 3: " in error
    assert "; line 4: " in error
    team.write_text("wrong\n" * 9)
    assert "; line 5: " in run("client", "--from", team, "--out", own_certs).refused()
    assert "; and 4 more\n" in run("client", "--from", team, "--out", own_certs).refused()
    team.write_text("ada@example.com\nbob@example.com\n")
    error = run("client", "--from", team, "--out", own_certs).refused()
    assert "bob@example.com.key, bob@example.com.crt exist already" in error
    many = [f"u{number}@example.com" for number in range(8)]
    assert contents(own_certs) == before
    assert run("client", *many, "--out", own_certs).status == 0
    assert (
        "u5@example.com.crt and 4 more exist" in run("client", *many, "--out", own_certs).refused()
    )
    assert run("client", "--from", team, "--out", own_certs, "--force").status == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        (b"\xff\xfea\x00", "is not text in UTF-8"),
        (b"# nobody\n", "expected an EMAIL, or --from FILE"),
    ],
)
def test_a_list_without_clients_is_one_sentence(
    run: Run, own_certs: Path, tmp_path: Path, content: bytes | None, expected: str
) -> None:
    before = contents(own_certs)
    if content is not None:
        (tmp_path / "team.txt").write_bytes(content)
    error = run("client", "--from", tmp_path / "team.txt", "--out", own_certs).refused()
    assert expected in error
    assert contents(own_certs) == before


def test_options_count_before_the_command_too(run: Run, own_certs: Path) -> None:
    """`--out DIR client EMAIL` is the same as `client EMAIL --out DIR`."""
    assert run("--out", own_certs, "--days", "3", "client", "a@example.com").status == 0
    assert (own_certs / "a@example.com.crt").exists()


def test_an_international_domain_is_issued_in_ascii(run: Run, own_certs: Path) -> None:
    """CN, subjectAltName and file name have the one form that the server uses."""
    assert run("client", "jo@bücher.example.de", "--out", own_certs).status == 0
    ascii_form = "jo@xn--bcher-kva.example.de"
    certificate = certificate_of(own_certs / f"{ascii_form}.crt")
    assert certificate.subject == common_name(ascii_form)
    assert names_in(certificate).get_values_for_type(x509.RFC822Name) == [ascii_form]


@pytest.mark.parametrize("email", ["/etc/x@example.com", "a/b@example.com", "a%2fb@example.com"])
def test_an_e_mail_with_a_slash_stays_in_the_directory(
    run: Run, own_certs: Path, tmp_path: Path, email: str
) -> None:
    """A slash is legal in an e-mail, and leads nowhere."""
    before = set(contents(own_certs))
    assert run("client", email, "--out", own_certs).status == 0
    key, certificate = sorted(set(contents(own_certs)) - before, reverse=True)
    assert (Path(key).suffix, Path(certificate).suffix) == (".key", ".crt")
    assert certificate_of(own_certs / certificate).subject == common_name(email)
    assert [path.name for path in tmp_path.iterdir()] == ["certs"]


def test_e_mails_that_differ_have_files_that_differ() -> None:
    """No client's files are mistaken for another's, or for those of the set."""
    emails = ["a/b@example.com", "a%2Fb@example.com", "a%252Fb@example.com", "ab@example.com"]
    stems = {key_files.client_stem(email) for email in emails}
    assert len(stems) == len(emails)
    assert all("@" in stem and "/" not in stem for stem in stems)


@pytest.mark.parametrize(
    "email",
    [
        "not_an_email",
        "",
        "a@b",
        "two@at@example.com",
        "a@example.com\n",
        "a b@example.com",
        '"quoted"@example.com',
        "jö@example.com",
        "a@\uff45xample.com",  # a full-width e
        "\udcff@example.com",
        "a@[127.0.0.1]",
    ],
)
def test_a_name_that_the_server_would_refuse_is_not_issued(
    run: Run, own_certs: Path, email: str
) -> None:
    """The refusal comes here, in one sentence, and not at the first check-in."""
    before = contents(own_certs)
    assert "argument EMAIL: " in run("client", "--out", own_certs, "--", email).refused()
    assert contents(own_certs) == before


def test_an_e_mail_over_64_characters_is_refused_in_a_sentence(
    run: Run, own_certs: Path, authority: Authority
) -> None:
    """X.520 has no room for it; the ASCII form of a domain counts."""
    fits = f"{'a' * 52}@example.com"
    assert len(fits) == 64
    assert run("client", fits, "--out", own_certs).status == 0
    for email in (f"a{fits}", f"x@{'日本語' * 15}.jp"):
        error = run("client", email, "--out", own_certs).refused()
        assert "of 65 characters does not fit in a common name" in error
        with pytest.raises(ValueError, match="of 65 characters does not fit in a common name"):
            authority.issue_client(email)


EMAILS = st.one_of(
    st.text(),
    st.emails(),
    st.builds("{}@{}".format, st.text(min_size=1), st.sampled_from(["example.com", "a.local"])),
    st.builds(
        "{}@{}.example.com".format,
        st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,40}", fullmatch=True),
        st.text(min_size=1, max_size=20),
    ),
)


@given(text=EMAILS)
@settings(deadline=None)
def test_what_is_issued_is_what_the_server_reads(authority: Authority, text: str) -> None:
    """For any text: no certificate, or one that the server takes for exactly this e-mail."""
    try:
        credential = authority.issue_client(text)
    except ValueError:
        return
    assert identify(der(credential)).email == parse_email(text)


def test_a_server_that_judges_otherwise_is_noticed_before_a_certificate_is_handed_out(
    run: Run, own_certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client's certificate is shown to the server's own rules; today they always agree."""

    def stricter(_: bytes) -> Identity:
        raise IdentityError(403, "stricter", "Not on Sundays")

    def stranger(_: bytes) -> Identity:
        return Identity("b@example.com", issuer="", serial="", not_before=0, not_after=0)

    before = contents(own_certs)
    monkeypatch.setattr("certs_gen.authority.identify", stricter)
    error = run("client", "a@example.com", "--out", own_certs).refused()
    assert "the server would refuse a@example.com: Not on Sundays" in error
    monkeypatch.setattr("certs_gen.authority.identify", stranger)
    error = run("client", "a@example.com", "--out", own_certs).refused()
    assert "the server would take a@example.com for b@example.com" in error
    assert contents(own_certs) == before


def test_pkcs12_holds_all_that_a_browser_needs(run: Run, own_certs: Path) -> None:
    """Key, certificate and CA in one file; its password is shown once, and is hard to guess."""
    done = run("client", "a@example.com", "--pkcs12", "--out", own_certs)
    assert done.status == 0
    bundle = own_certs / "a@example.com.p12"
    shown = re.search(re.escape(str(bundle)) + r" \(password ([a-z2-9-]{19})\)\n", done.out)
    assert shown is not None
    text = openssl("pkcs12", "-info", "-noenc", "-in", bundle, "-passin", f"pass:{shown[1]}")
    assert text.count("BEGIN CERTIFICATE") == 2
    assert text.count("BEGIN PRIVATE KEY") == 1
    assert "friendlyName: a@example.com" in text
    assert (own_certs / "a@example.com.key").read_text() in text
    assert mode(bundle) == 0o600
    with pytest.raises(AssertionError, match="invalid password"):
        openssl("pkcs12", "-info", "-noenc", "-in", bundle, "-passin", "pass:")


def test_a_chosen_pkcs12_password_is_not_shown(run: Run, own_certs: Path) -> None:
    """The user who chose it knows it."""
    chosen = ("--pkcs12", "--pkcs12-password", "pässword")
    done = run("client", "a@example.com", *chosen, "--out", own_certs)
    assert done.status == 0
    assert "pässword" not in done.out + done.err
    bundle = own_certs / "a@example.com.p12"
    openssl("pkcs12", "-info", "-noenc", "-in", bundle, "-passin", "pass:pässword")


@pytest.mark.parametrize("password", ["", "\n", "\udcff"])
def test_a_password_that_browsers_refuse_is_refused(
    run: Run, own_certs: Path, password: str
) -> None:
    """An empty one above all."""
    chosen = ("--pkcs12", "--pkcs12-password", password)
    assert "expected a password" in run("client", "a@b.com", *chosen, "--out", own_certs).refused()
    with pytest.raises(ValueError, match="not empty"):
        Authority.create().pkcs12("a", "")


def test_a_server_is_issued_for_exactly_the_names_given(run: Run, own_certs: Path) -> None:
    """By as many names and addresses as clients use, each once."""
    names = ("--name", "Status.Example.com", "--name", "status.example.com", "--name", "*.a.org")
    ips = ("--ip", "192.0.2.7", "--ip", "2001:DB8::7")
    assert run("server", *names, *ips, "--out", own_certs, "--force").status == 0
    hosts = names_in(certificate_of(own_certs / "server.crt"))
    assert hosts.get_values_for_type(x509.DNSName) == ["status.example.com", "*.a.org"]
    assert [str(ip) for ip in hosts.get_values_for_type(x509.IPAddress)] == [
        "192.0.2.7",
        "2001:db8::7",
    ]
    strict = ("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", own_certs / "ca.crt")
    openssl(*strict, "-verify_hostname", "status.example.com", own_certs / "server.crt")
    openssl(*strict, "-verify_ip", "2001:db8::7", own_certs / "server.crt")


def test_a_server_without_names_is_the_set_s_own(run: Run, own_certs: Path) -> None:
    """Renewing the server of a development set needs no list of names."""
    before = names_in(certificate_of(own_certs / "server.crt"))
    assert run("server", "--force", "--out", own_certs).status == 0
    assert names_in(certificate_of(own_certs / "server.crt")) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(
            ("--name", name)
            for name in ("", ".", "a..b", "-a.org", "a.org.", "a b", "*", "a.*.org")
        ),
        *(
            ("--name", name)
            for name in ("bücher.de", "192.0.2.7", "::1", "a\0b", "a\n", "https://a")
        ),
        ("--name", "a" * 64),
        ("--name", ".".join(["a" * 63] * 4)),
        *(
            ("--ip", ip)
            for ip in ("", "192.0.2", "192.0.2.256", "fe80::1%eth0", "::g", "localhost")
        ),
        ("--ip", "192.0.2.0/24"),
    ],
)
def test_a_bad_server_name_is_one_sentence(
    run: Run, own_certs: Path, option: str, value: str
) -> None:
    """A name that no client could reach the server by is a slip of the hand."""
    before = contents(own_certs)
    error = run("server", f"{option}={value}", "--force", "--out", own_certs).refused()
    assert f"argument {option}: expected " in error
    assert contents(own_certs) == before


@given(st.one_of(st.text(), st.from_regex(r"[a-zA-Z0-9_*.-]{1,40}", fullmatch=True)))
@settings(deadline=None)
def test_any_text_is_a_dns_name_in_normal_form_or_refused(text: str) -> None:
    """An accepted address is lower-case ASCII, is accepted again, and fits in a certificate."""
    try:
        name = dns_name(text)
    except ValueError:
        return
    assert dns_name(name) == name == text.lower()
    assert x509.DNSName(name).value == name


@given(st.one_of(st.text(), st.ip_addresses().map(str)))
@settings(deadline=None)
def test_any_text_is_an_ip_address_or_refused(text: str) -> None:
    """An accepted text is an address in some spelling."""
    try:
        address = ip_address(text)
    except ValueError:
        return
    assert ip_address(str(address)) == address == ipaddress.ip_address(text)


def test_a_server_needs_a_name(authority: Authority) -> None:
    """A certificate that fits no host is not issued."""
    with pytest.raises(ValueError, match="at least one"):
        authority.issue_server([])


def test_the_next_announcer_lies_beside_the_one_in_use(run: Run, own_certs: Path) -> None:
    """A key is replaced without a gap: the next one is made while the old one signs."""
    before = contents(own_certs)
    assert run("announcer", "--name", "announcer-2", "--out", own_certs).status == 0
    after = contents(own_certs)
    assert set(after) - set(before) == {"announcer-2.crt", "announcer-2.key"}
    assert {name: after[name] for name in before} == before
    certificate = certificate_of(own_certs / "announcer-2.crt")
    assert certificate.subject == common_name("tornado_status announcer-2")
    assert isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)
    assert certificate.public_key() != certificate_of(own_certs / "announcer.crt").public_key()


@pytest.mark.parametrize("name", ["ca", "CA", "server", "client", "../x", "/x", "", ".x", "a" * 41])
def test_an_announcer_cannot_take_the_place_of_another_certificate(
    run: Run, own_certs: Path, name: str
) -> None:
    """Not even with --force: the CA's key is not one option away from being lost."""
    before = contents(own_certs)
    assert run("announcer", f"--name={name}", "--force", "--out", own_certs).refused()
    assert contents(own_certs) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("--key-type", "dsa"),
        ("client",),
        ("client", "--from"),
        ("--if-missing", "--force"),
        ("--if-missing", "client", "a@example.com"),
        ("--key-type", "ec", "announcer", "--force"),
        ("client", "a@example.com", "--pkcs12-password", "secret"),
        ("--fo",),
        ("--out",),
        ("--na\nme",),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    run: Run, own_certs: Path, arguments: tuple[str, ...]
) -> None:
    """No usage, no traceback, nothing written."""
    before = contents(own_certs)
    out = () if arguments == ("--out",) else ("--out", own_certs)
    assert run(*out, *arguments).refused().startswith("status-certs: error: ")
    assert contents(own_certs) == before


def test_help_says_that_force_makes_a_new_ca(capsys: pytest.CaptureFixture[str]) -> None:
    """The one option that voids certificates says so before it is used."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: status-certs" in text
    assert "--force without a command, replace the whole set and its CA" in text


def test_a_path_that_would_play_with_the_terminal_is_escaped(run: Run, tmp_path: Path) -> None:
    """File names are shown as one line each, whatever is in them."""
    out = tmp_path / "a\n\x1b[2J\udcff"
    done = run("--out", out)
    assert done.status == 0
    assert len(done.out.splitlines()) == len(SET) + 1
    assert "\\n\\x1b[2J\\udcff" in done.out
