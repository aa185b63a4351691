"""certs_gen revoke and crl: what is revoked, what is kept, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from certs_gen import cli, key_files, revocation
from certs_gen.authority import (
    CLOCK_SKEW,
    CRL_DAYS,
    MAX_NUMBER_BITS,
    Authority,
    common_name,
    first_crl_number,
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
from tornado_status.errors import ConfigError
from tornado_status.pki.identity import identify

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
SERIALS = st.integers(1, 2**MAX_NUMBER_BITS - 1)


def run(*arguments: str | Path) -> Result:
    """The command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([str(argument) for argument in arguments])
    return Result(status, out.getvalue(), err.getvalue())


@pytest.fixture
def own_certs(certs: Path, tmp_path: Path) -> Path:
    """A development set that a test may change."""
    return shutil.copytree(certs, tmp_path / "certs")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(now=NOW)


def crl_of(directory: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((directory / "ca.crl").read_bytes())


def pem(crl: x509.CertificateRevocationList) -> bytes:
    return crl.public_bytes(serialization.Encoding.PEM)


def entries(
    crl: x509.CertificateRevocationList,
) -> list[tuple[int, datetime.datetime, list[x509.Extension[x509.ExtensionType]]]]:
    """All that a list says of each certificate."""
    return [(e.serial_number, e.revocation_date_utc, list(e.extensions)) for e in crl]


def revoked_in(directory: Path) -> list[int]:
    return [entry.serial_number for entry in crl_of(directory)]


def serial_of(path: Path) -> int:
    return certificate_of(path).serial_number


def verdict(directory: Path, name: str, *options: str) -> str:
    """Return what `openssl verify` says of a certificate: OK, or why not."""
    done = subprocess.run(
        [
            *("openssl", "verify", *options, "-crl_check"),
            *("-CAfile", str(directory / "ca.crt"), "-CRLfile", str(directory / "ca.crl")),
            str(directory / name),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 0:
        return "OK"
    [line] = [line for line in done.stderr.splitlines() if "depth lookup" in line]
    return line.partition("lookup: ")[2]


def issue_odd(authority: Authority, subject: x509.Name) -> bytes:
    """A client's certificate with any subject, in PEM."""
    now = datetime.datetime.now(datetime.UTC)
    certificate = authority.certify(
        new_key("ec").public_key(),
        subject,
        leaf_extensions([ExtendedKeyUsageOID.CLIENT_AUTH]),
        not_before=now - DAY,
        not_after=now + DAY,
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


# ------------------------------------------------------------------------------ what is revoked


@pytest.mark.parametrize("key_type", ["ec", "rsa"])
def test_openssl_finds_the_revoked_one_revoked_and_the_others_good(
    tmp_path: Path, key_type: str
) -> None:
    """One e-mail is revoked at once, no other is, and the list is the CA's."""
    out = tmp_path / "certs"
    assert run("--out", out, "--key-type", key_type).status == 0
    assert run("client", "ada@example.com", "--out", out).status == 0
    done = run("revoke", "ada@example.com", "--out", out)
    assert (done.status, done.err) == (0, "")
    said = openssl("crl", "-verify", "-in", out / "ca.crl", "-CAfile", out / "ca.crt", "-text")
    assert "Version 2" in said
    names = ("ada@example.com", "client", "operator", "server", "announcer")
    assert {name: verdict(out, f"{name}.crt", "-x509_strict") for name in names} == {
        "ada@example.com": "certificate revoked",
        **dict.fromkeys(names[1:], "OK"),
    }


def test_it_says_what_it_revoked_and_until_when_the_list_is_good(own_certs: Path) -> None:
    """Serial number, file, validity, and that no server needs to be restarted."""
    done = run("revoke", "valid_user@example.com", "abc", "--out", own_certs)
    until = crl_of(own_certs).next_update_utc
    assert until is not None
    assert until - crl_of(own_certs).last_update_utc == CRL_DAYS * DAY + CLOCK_SKEW
    assert done.out.splitlines() == [
        f"revoked: {serial_of(own_certs / 'client.crt'):x} ({own_certs}/client.crt)",
        f"revoked: abc (not of a certificate in {own_certs})",
        f"{own_certs}/ca.crl (until {until:%Y-%m-%d}, 2 revoked)",
        "A server whose tls.crl it is notices by itself.",
    ]


def test_an_e_mail_stands_for_all_its_certificates_whatever_their_files_are_called(
    own_certs: Path,
) -> None:
    """In any spelling of the e-mail and of the certificate's name, once each, and no others."""
    ca = Authority.load(own_certs)
    mail = "valid_user@example.com"
    assert run("client", mail, "--out", own_certs).status == 0
    shutil.copy(own_certs / "client.crt", own_certs / "copy.crt")
    (own_certs / "old.crt").write_bytes(issue_odd(ca, common_name("Valid_User@EXAMPLE.com")))
    two = x509.Name([*common_name("x"), *common_name(mail)])
    # A file may hold several, as one with a chain does.
    chain = issue_odd(ca, common_name("b@example.com")) + issue_odd(ca, two)
    (own_certs / "chain.crt").write_bytes(chain)

    done = run("revoke", "VALID_USER@Example.com", "--out", own_certs)
    assert done.status == 0
    theirs = {serial_of(own_certs / name) for name in ("client.crt", f"{mail}.crt", "old.crt")}
    theirs.add(x509.load_pem_x509_certificates(chain)[1].serial_number)
    assert set(revoked_in(own_certs)) == theirs
    assert len(revoked_in(own_certs)) == 4
    assert f"({own_certs}/client.crt, {own_certs}/copy.crt)" in done.out


def test_certificates_of_another_ca_of_the_same_name_are_left_alone(
    own_certs: Path, tmp_path: Path
) -> None:
    """An older CA's certificates are void anyway, and its numbers are not this one's."""
    assert run("client", "ada@example.com", "--out", own_certs).status == 0
    assert run("--force", "--out", own_certs).status == 0
    assert (
        "no certificate for ada@example.com"
        in run("revoke", "ada@example.com", "--out", own_certs).refused()
    )


def test_the_file_that_cannot_be_read_is_named(own_certs: Path) -> None:
    """It may be the one that was meant; the rest is revoked all the same."""
    (own_certs / "torn.crt").write_bytes((own_certs / "client.crt").read_bytes()[:300])
    (own_certs / "away.crt").symlink_to("nowhere")
    (own_certs / "directory.crt").mkdir()
    os.mkfifo(own_certs / "pipe.crt")
    done = run("revoke", "operator@example.com", "--out", own_certs)
    assert done.status == 0
    unread = [line.split(" ")[0] for line in done.out.splitlines() if "was not looked at" in line]
    assert {Path(path).name for path in unread} == {
        "torn.crt",
        "away.crt",
        "directory.crt",
        "pipe.crt",
    }
    assert verdict(own_certs, "operator.crt") == "certificate revoked"


@pytest.mark.parametrize("stem", ["client", "bad_client", "server", "announcer"])
def test_a_serial_number_is_taken_as_the_server_and_openssl_show_it(
    own_certs: Path, stem: str
) -> None:
    """Copied from a log or a terminal, it revokes that very certificate, a server's too."""
    path = own_certs / f"{stem}.crt"
    shown = openssl("x509", "-in", path, "-noout", "-serial").strip()
    assert shown.startswith("serial=")
    digits = shown.removeprefix("serial=")
    colons = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    for spelling in (shown, digits, digits.lower(), colons, f"0x{digits}"):
        assert revocation.parse_serial(spelling) == serial_of(path)
    if stem == "client":
        der = certificate_of(path).public_bytes(serialization.Encoding.DER)
        assert revocation.parse_serial(identify(der).serial) == serial_of(path)

    assert run("revoke", shown, "--out", own_certs).status == 0
    assert verdict(own_certs, f"{stem}.crt") == "certificate revoked"


def test_a_certificate_whose_file_is_gone_is_revoked_by_its_serial_number(
    own_certs: Path, tmp_path: Path
) -> None:
    """After a renewal with --force you can still revoke the old certificate."""
    elsewhere = tmp_path / "client.crt"
    (own_certs / "client.crt").rename(elsewhere)
    number = f"{serial_of(elsewhere):x}"
    done = run("revoke", number, "--out", own_certs)
    assert (done.status, revoked_in(own_certs)) == (0, [int(number, 16)])
    elsewhere.rename(own_certs / "client.crt")
    assert verdict(own_certs, "client.crt") == "certificate revoked"


@given(
    SERIALS,
    st.sampled_from(["", "0x", "0X", "serial=", "SERIAL="]),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_every_spelling_of_a_serial_number_is_that_number(
    serial: int, prefix: str, zeros: int, colons: bool, capitals: bool
) -> None:
    """Leading zeros, capitals, colons and prefixes change nothing."""
    digits = "0" * zeros + f"{serial:x}"
    if colons:
        digits = "0" * (len(digits) % 2) + digits
        digits = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    text = prefix + (digits.upper() if capitals else digits)
    assert revocation.parse_serial(text) == serial


@given(
    st.one_of(
        st.text(),
        st.text("0123456789abcdefABCDEFxX:=seril \n", max_size=60),
        st.from_regex(r"[0-9a-f:]{1,50}"),
        st.integers().map(hex),
    )
)
def test_any_text_is_a_serial_number_or_refused(text: str) -> None:
    """An accepted number fits in a CRL, and is what the digits say."""
    try:
        serial = revocation.parse_serial(text)
    except ValueError as error:
        assert str(error).startswith("expected ")
        return
    digits = text.lower().removeprefix("serial=").removeprefix("0x").replace(":", "")
    assert f"{serial:x}" == digits.lstrip("0")
    x509.RevokedCertificateBuilder().serial_number(serial)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "00:00", "0x", "serial=", "g", "12 34", "12\n", "0x0x12", "1:2", "123:45"),
        *("12::34", ":12", "12:", "\uff11", "²", "1_000", "+1", "adam", "f" * 41, "80" + "00" * 19),
    ],
)
def test_what_is_no_serial_number_is_one_sentence(own_certs: Path, text: str) -> None:
    """Nothing is revoked by a slip of the hand."""
    before = contents(own_certs)
    error = run("revoke", "--out", own_certs, "--", text).refused()
    assert "argument EMAIL|SERIAL: expected " in error
    assert contents(own_certs) == before


# ------------------------------------------------------------------------------ what is kept


def test_every_list_keeps_the_entries_of_the_one_before(own_certs: Path) -> None:
    """With their dates and reasons; what is new comes behind them."""
    now = datetime.datetime.now(datetime.UTC)
    assert run("revoke", "a1", "--reason", "keyCompromise", "--out", own_certs).status == 0
    first = entries(crl_of(own_certs))
    assert run("revoke", "operator@example.com", "--out", own_certs).status == 0
    second = entries(crl_of(own_certs))
    assert run("crl", "--out", own_certs).status == 0
    assert entries(crl_of(own_certs)) == second
    assert second[:1] == first
    assert [serial for serial, _, _ in second] == [0xA1, serial_of(own_certs / "operator.crt")]
    assert all(now - DAY / 24 < date <= now + DAY / 24 for _, date, _ in second)
    [(_, _, [reason]), (_, _, none)] = second
    assert reason.value == x509.CRLReason(x509.ReasonFlags.key_compromise)
    assert none == []


def test_who_is_revoked_already_stays_so_and_nothing_is_lost(own_certs: Path) -> None:
    """Saying it twice is no error, and changes neither the date nor the reason."""
    again = ("valid_user@example.com", "a1", "A1")
    assert run("revoke", *again, "--reason", "superseded", "--out", own_certs).status == 0
    before = entries(crl_of(own_certs))
    assert len(before) == 2
    done = run("revoke", *again, "b2", "--reason", "keyCompromise", "--out", own_certs)
    assert done.status == 0
    assert done.out.count("revoked already on 20") == 2
    assert entries(crl_of(own_certs))[:2] == before
    assert revoked_in(own_certs)[2:] == [0xB2]


def test_numbers_and_dates_are_new_each_time(own_certs: Path) -> None:
    """Of two lists the number says which is newer."""
    numbers = [revocation.number_of(crl_of(own_certs))]
    for arguments in (("revoke", "1"), ("revoke", "2"), ("revoke", "2"), ("crl",), ("crl",)):
        assert run(*arguments, "--out", own_certs).status == 0
        numbers.append(revocation.number_of(crl_of(own_certs)))
    assert numbers == sorted(set(numbers))
    now = datetime.datetime.now(datetime.UTC)
    assert now - DAY / 24 < crl_of(own_certs).last_update_utc < now


def test_numbers_never_fall_though_the_file_is_lost(own_certs: Path) -> None:
    """Nor when the whole set is made anew: they are the time."""
    assert run("revoke", "a1", "--out", own_certs).status == 0
    number = revocation.number_of(crl_of(own_certs))
    (own_certs / "ca.crl").unlink()
    done = run("revoke", "b2", "--out", own_certs)
    assert done.status == 0
    assert f"There was no {own_certs}/ca.crl: if one was lost, what it revoked is valid" in done.out
    assert revoked_in(own_certs) == [0xB2]
    assert revocation.number_of(crl_of(own_certs)) > number
    assert run("--force", "--out", own_certs).status == 0
    assert revocation.number_of(crl_of(own_certs)) > number


@given(st.integers(0, 2**MAX_NUMBER_BITS - 2), st.datetimes(NOW.replace(tzinfo=None)))
def test_the_next_number_is_above_the_last_and_not_behind_the_clock(
    authority: Authority, last: int, now: datetime.datetime
) -> None:
    """Also after a change of the clock."""
    moment = now.replace(tzinfo=datetime.UTC)
    number = revocation.next_number(authority.crl([], last, now=NOW), moment)
    assert number > last
    assert number >= first_crl_number(moment)
    assert number in (last + 1, first_crl_number(moment))


def test_after_the_highest_number_there_is_none(authority: Authority) -> None:
    """20 bytes are all that RFC 5280 has for it."""
    last = authority.crl([], 2**MAX_NUMBER_BITS - 1, now=NOW)
    with pytest.raises(ConfigError, match="highest"):
        revocation.next_crl(authority, last, [1])


@given(
    st.lists(
        st.lists(st.tuples(SERIALS, st.sampled_from(sorted(revocation.REASONS))), max_size=5),
        max_size=5,
    )
)
@settings(max_examples=30)
def test_any_row_of_revocations_adds_up(
    authority: Authority, runs: list[list[tuple[int, str]]]
) -> None:
    """Each serial number is listed once, with what was first said of it."""
    crl = authority.empty_crl(now=NOW)
    expected: dict[int, tuple[datetime.datetime, str]] = {}
    now = NOW
    for row in runs:
        for serial, reason in row:
            now += datetime.timedelta(seconds=1)
            expected.setdefault(serial, (now, reason))
            crl = revocation.next_crl(
                authority, crl, [serial], reason=revocation.REASONS[reason], now=now
            )
    listed = {}
    for entry in crl:
        said = [extension.value for extension in entry.extensions]
        [reason] = [v.reason.value for v in said if isinstance(v, x509.CRLReason)] or [
            "unspecified"
        ]
        listed[entry.serial_number] = (entry.revocation_date_utc, reason)
    assert listed == expected
    assert len(crl) == len(expected)


def test_a_list_is_good_for_30_days_or_as_long_as_the_last_one(own_certs: Path) -> None:
    """Revoking never brings the end nearer; `crl` and --days set it."""

    def days() -> int:
        end = crl_of(own_certs).next_update_utc
        assert end is not None
        return round((end - datetime.datetime.now(datetime.UTC)) / DAY)

    for arguments, expected in (
        (("crl", "--days", "90"), 90),
        (("revoke", "1"), 90),
        (("crl",), 30),
        (("revoke", "2"), 30),
        (("crl", "--days", "7"), 7),
        (("revoke", "3"), 30),
        (("revoke", "4", "--days", "3"), 3),
        (("--days", "5", "crl"), 5),
    ):
        assert run(*arguments, "--out", own_certs).status == 0
        assert days() == expected, arguments


def test_a_list_that_openssl_made_is_continued(own_certs: Path) -> None:
    """Of version 1, without a number: its entries stay, with what only openssl says of them."""
    (own_certs / "ca.cnf").write_text(
        f"[ca]\ndefault_ca = own\n[own]\ndatabase = {own_certs}/index.txt\ndefault_md = sha256\n"
        f"certificate = {own_certs}/ca.crt\nprivate_key = {own_certs}/ca.key\n"
    )
    (own_certs / "index.txt").write_text(
        "R\t300101000000Z\t260101000000Z\t0A\tunknown\t/CN=a@example.com\n"
        "R\t300101000000Z\t260102000000Z,keyTime,20251231000000Z\t0B\tunknown\t/CN=b\n"
        "R\t300101000000Z\t260103000000Z,holdInstruction,holdInstructionReject\t0C\tunknown\t/CN=c\n"
    )
    generate = ("ca", "-config", own_certs / "ca.cnf", "-gencrl", "-crldays", "7")
    openssl(*generate, "-out", own_certs / "ca.crl")
    before = entries(crl_of(own_certs))
    assert [len(extensions) for _, _, extensions in before] == [0, 2, 2]
    assert revocation.number_of(crl_of(own_certs)) == 0

    done = run("revoke", "0a", "d", "--out", own_certs)
    assert done.status == 0
    assert "revoked already on 2026-01-01: a (" in done.out
    assert entries(crl_of(own_certs))[:3] == before
    assert revoked_in(own_certs) == [0xA, 0xB, 0xC, 0xD]
    assert revocation.number_of(crl_of(own_certs)) > 1_700_000_000_000_000


def test_a_ca_made_elsewhere_revokes_too(tmp_path: Path) -> None:
    """Of Ed25519 even; its first list is begun."""
    openssl(
        *("req", "-x509", "-newkey", "ed25519", "-noenc", "-subj", "/CN=Ours", "-days", "30"),
        *("-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"),
    )
    assert run("client", "a@example.com", "--out", tmp_path).status == 0
    assert run("client", "b@example.com", "--out", tmp_path).status == 0
    assert run("revoke", "a@example.com", "--out", tmp_path).status == 0
    assert verdict(tmp_path, "a@example.com.crt") == "certificate revoked"
    assert verdict(tmp_path, "b@example.com.crt") == "OK"


# ------------------------------------------------------------------------------ on disk


def test_revocations_at_once_lose_nothing(own_certs: Path) -> None:
    """Each run reads the list only when it is alone, so that the last one has them all."""
    wanted = range(0xA1, 0xA7)
    with key_files.locked(own_certs):
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", WAITING, "revoke", f"{n:x}", "--out", str(own_certs)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in wanted
        ]
        for process in runs:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
    ends = [process.communicate(timeout=60) for process in runs]
    assert [process.returncode for process in runs] == [0] * len(wanted), ends
    assert sorted(revoked_in(own_certs)) == list(wanted)
    listed = sorted(int(out.partition(" revoked)")[0].rpartition(" ")[2]) for out, _ in ends)
    assert listed == list(range(1, len(wanted) + 1))


def test_killed_in_the_middle_it_leaves_the_old_list_or_the_new_one(
    certs: Path, tmp_path: Path
) -> None:
    """At whatever moment: ca.crl is there, and whole."""
    old = (certs / "ca.crl").read_bytes()
    before, deaths = 0, 0
    while True:
        own_certs = shutil.copytree(certs, tmp_path / str(deaths))
        done = python("-c", KILLED, str(deaths), own_certs, "revoke", "a1", "--out", own_certs)
        if done.status == 0:
            break
        assert (done.status, done.err) == (9, "")
        if (own_certs / "ca.crl").read_bytes() == old:
            before += 1
        else:
            assert revoked_in(own_certs) == [0xA1]
        deaths += 1
    assert revoked_in(own_certs) == [0xA1]
    assert before > 6  # directory, the CA's files, certificates, the old list, the new one, rename


# Is killed by the system in the middle of a write: beyond so many bytes no file may grow.
KILLED_WRITING = """
import resource, signal, sys
from certs_gen.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
sys.exit(main(sys.argv[1:]))
"""


def test_killed_while_it_writes_it_leaves_the_old_list(own_certs: Path) -> None:
    """Half of the new one lies elsewhere, and the next run does not mind it."""
    assert run("revoke", *map(str, range(1, 10)), "--out", own_certs).status == 0
    before = contents(own_certs)
    done = python("-c", KILLED_WRITING, "revoke", "a1", "--out", own_certs)
    assert (done.status, done.out, done.err) == (-signal.SIGXFSZ, "", "")
    after = contents(own_certs)
    assert {name: after[name] for name in before} == before
    [half] = after.keys() - before.keys()
    assert len(after[half]) == 400
    assert run("revoke", "a1", "--out", own_certs).status == 0
    assert revoked_in(own_certs) == [*range(1, 10), 0xA1]


def test_who_reads_meanwhile_reads_one_list(own_certs: Path) -> None:
    """The old file is never written to: a server that has it open reads it to its end."""
    old = (own_certs / "ca.crl").read_bytes()
    with (own_certs / "ca.crl").open("rb") as reader:
        assert run("revoke", "a1", "--out", own_certs).status == 0
        assert reader.read() == old
    assert (own_certs / "ca.crl").read_bytes() != old


def test_the_new_list_is_on_the_disk_before_it_has_the_name(
    own_certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut, which no test can cause, leaves no empty file, and no list that was said."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("directory" if is_directory else "file")

    def renamed(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent == own_certs
        replace(source, target)
        steps.append("rename")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    assert run("revoke", "a1", "--out", own_certs).status == 0
    assert steps == ["file", "rename", "directory"]


def test_a_full_disk_leaves_the_old_list(own_certs: Path) -> None:
    """And nothing half written beside it."""
    assert run("revoke", *map(str, range(1, 10)), "--out", own_certs).status == 0
    before = contents(own_certs)
    for command in (("revoke", "a1"), ("crl",)):
        error = python("-c", FULL, *command, "--out", own_certs).refused()
        assert "ca.crl: cannot write it: File too large" in error
        assert contents(own_certs) == before


def test_nothing_but_the_list_is_touched(own_certs: Path) -> None:
    """No other file is written, none is left over."""
    before = contents(own_certs)
    for command in (("revoke", "valid_user@example.com"), ("crl",)):
        assert run(*command, "--out", own_certs).status == 0
    after = contents(own_certs)
    assert before.keys() == after.keys()
    assert {name for name in after if after[name] != before[name]} == {"ca.crl"}


def test_the_list_can_be_read_by_the_server_s_own_user_whatever_the_umask(own_certs: Path) -> None:
    """An administrator's strict umask does not lock the server out of the next list."""
    previous = os.umask(0o077)
    try:
        assert run("revoke", "a1", "--out", own_certs).status == 0
    finally:
        os.umask(previous)
    assert stat.S_IMODE((own_certs / "ca.crl").stat().st_mode) == 0o644


def test_a_link_stays_a_link(own_certs: Path, tmp_path: Path) -> None:
    """The server may read the list where the link points to: that is the one to replace."""
    published = tmp_path / "published"
    published.mkdir()
    (own_certs / "ca.crl").rename(published / "list.crl")
    (own_certs / "ca.crl").symlink_to(published / "list.crl")
    assert run("revoke", "a1", "--out", own_certs).status == 0
    assert (own_certs / "ca.crl").is_symlink()
    assert b"X509 CRL" in (published / "list.crl").read_bytes()
    assert revoked_in(own_certs) == [0xA1]
    assert [path.name for path in published.iterdir()] == ["list.crl"]


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("revoke",), "required: EMAIL|SERIAL"),
        (("revoke", "nobody@example.com"), "no certificate for nobody@example.com"),
        (("revoke", "a1", "nobody@example.com"), "no certificate for nobody@example.com"),
        (("revoke", "two@at@example.com"), "argument EMAIL|SERIAL: not a valid e-mail address"),
        (("revoke", "a@b"), "argument EMAIL|SERIAL: not a valid e-mail address"),
        (("revoke", "a1", "--reason", "whim"), "argument --reason: invalid choice"),
        (("revoke", "a1", "--reason", "certificateHold"), "argument --reason: invalid choice"),
        (("revoke", "a1", "--days", "0"), "expected 1-3650 days"),
        (("revoke", "a1", "--force"), "unrecognized arguments: --force"),
        (("--force", "revoke", "a1"), "--force and --key-type are for issuing"),
        (("--key-type", "ec", "crl"), "--force and --key-type are for issuing"),
        (("--if-missing", "crl"), "--if-missing is for a whole set"),
        (("crl", "a1"), "unrecognized arguments: a1"),
        (("crl", "--days", "3651"), "expected 1-3650 days"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    own_certs: Path, arguments: Sequence[str], sentence: str
) -> None:
    """And then nothing is revoked, not even what was right in it."""
    before = contents(own_certs)
    assert sentence in run(*arguments, "--out", own_certs).refused()
    assert contents(own_certs) == before


def test_the_ca_does_not_revoke_itself(own_certs: Path) -> None:
    """No server could trust that list; the sentence says what to do."""
    before = contents(own_certs)
    own = f"{serial_of(own_certs / 'ca.crt'):x}"
    error = run("revoke", "a1", own, "--out", own_certs).refused()
    assert f"{own} is the CA itself" in error
    assert contents(own_certs) == before


def test_a_ca_that_is_named_by_an_e_mail_is_not_revoked_by_it(tmp_path: Path) -> None:
    """Only what it issued is."""
    ca = Authority.create(name="ops@example.com")
    key_files.write(key_files.pair(tmp_path, "ca", ca), force=False)
    assert "no certificate for" in run("revoke", "ops@example.com", "--out", tmp_path).refused()
    assert run("client", "ops@example.com", "--out", tmp_path).status == 0
    assert run("revoke", "ops@example.com", "--out", tmp_path).status == 0
    assert revoked_in(tmp_path) == [serial_of(tmp_path / "ops@example.com.crt")]


def test_an_intermediate_ca_s_own_number_is_another_ca_s(
    tmp_path: Path, authority: Authority
) -> None:
    """A leaf may have it: two CAs number on their own."""
    key = new_key("ec")
    intermediate = authority.certify(
        key.public_key(),
        common_name("Intermediate"),
        [(x509.BasicConstraints(True, 0), True)],
        not_before=NOW,
        not_after=NOW + DAY,
    )
    number = intermediate.serial_number
    assert revocation.serials([number], [], Authority(intermediate, key)) == [number]
    with pytest.raises(ConfigError, match="the CA itself"):
        revocation.serials([authority.certificate.serial_number], [], authority)


def test_a_serial_number_that_no_list_can_hold_is_one_sentence(authority: Authority) -> None:
    """Another tool may have issued it."""
    with pytest.raises(ConfigError, match="does not allow"):
        revocation.next_crl(authority, None, [0])


def delta(ca: Authority) -> bytes:
    """A list of what changed since number 1, as a large CA publishes it."""
    builder = x509.CertificateRevocationListBuilder(ca.certificate.subject)
    crl = (
        builder.last_update(NOW)
        .next_update(NOW + DAY)
        .add_extension(x509.CRLNumber(2), critical=False)
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
    )
    signed = crl.sign(ca.key, None)  # as Ed25519 does, its key type
    return pem(signed)


def test_a_list_that_is_not_this_ca_s_own_is_not_overwritten(own_certs: Path) -> None:
    """A revocation would be missing. Each sentence says what is wrong with it, and how to go on."""
    ca = Authority.load(own_certs)
    mine = ca.empty_crl()
    other_name = Authority.create(name="Another CA")
    same_name = Authority.create()
    rsa = Authority.create(key_type="rsa")
    renamed = Authority(
        ca.certify(
            ca.key.public_key(),
            common_name("Renamed"),
            [(x509.BasicConstraints(True, None), True)],
            not_before=NOW,
            not_after=NOW + DAY,
        ),
        ca.key,
    )
    good = pem(mine)
    der = mine.public_bytes(serialization.Encoding.DER)
    changed = base64.encodebytes(der[:-1] + bytes([der[-1] ^ 1]))  # in its signature
    changed = b"-----BEGIN X509 CRL-----\n" + changed + b"-----END X509 CRL-----\n"
    for content, sentence in (
        (pem(same_name.empty_crl()), "not signed by this CA"),
        (pem(other_name.empty_crl()), "not signed by this CA"),
        (pem(renamed.empty_crl()), "in its own name"),
        (pem(rsa.empty_crl()), "not signed by this CA"),
        (pem(same_name.crl(mine, 7)), "move it away"),
        (good + pem(other_name.empty_crl()), "expected one CRL in PEM, found 2"),
        (der, "expected one CRL in PEM, found none"),
        ((own_certs / "ca.crt").read_bytes(), "expected one CRL in PEM, found none"),
        (b"", "expected one CRL in PEM, found none"),
        (good[: len(good) // 2], "cannot be read"),
        (changed, "not signed by this CA"),
    ):
        (own_certs / "ca.crl").write_bytes(content)
        before = contents(own_certs)
        for command in (("revoke", "a1"), ("crl",)):
            error = run(*command, "--out", own_certs).refused()
            assert f"{own_certs}/ca.crl: " in error
            assert sentence in error
            assert contents(own_certs) == before


def test_a_list_of_changes_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """A certificate that it leaves out would be valid again."""
    openssl(
        *("req", "-x509", "-newkey", "ed25519", "-noenc", "-subj", "/CN=Ours", "-days", "30"),
        *("-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"),
    )
    (tmp_path / "ca.crl").write_bytes(delta(Authority.load(tmp_path)))
    before = contents(tmp_path)
    error = run("revoke", "a1", "--out", tmp_path).refused()
    assert "expected a complete list, found the critical extension 2.5.29.27" in error
    assert contents(tmp_path) == before


def test_a_list_that_cannot_be_opened_is_not_overwritten(own_certs: Path) -> None:
    """A link to a volume that is not mounted is not a list that never was."""
    (own_certs / "ca.crl").unlink()
    (own_certs / "ca.crl").symlink_to(own_certs / "nowhere")
    assert "ca.crl: cannot read it: No such file" in run("crl", "--out", own_certs).refused()
    assert not (own_certs / "nowhere").exists()
    (own_certs / "ca.crl").unlink()
    (own_certs / "ca.crl").mkdir()
    assert "ca.crl: cannot read it: Is a directory" in run("crl", "--out", own_certs).refused()


@given(st.integers(0, 600), st.binary(max_size=4))
@settings(max_examples=200)
def test_a_damaged_list_is_refused_and_nothing_else(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory, at: int, damage: bytes
) -> None:
    """With any bytes in it."""
    good = pem(revocation.next_crl(authority, None, range(1, 10), now=NOW))
    path = tmp_path_factory.getbasetemp() / "damaged.crl"
    path.write_bytes(good[:at] + damage + good[at + len(damage) :])
    try:
        crl = revocation.last_crl(path, authority)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert crl == x509.load_pem_x509_crl(good)


def test_a_ca_that_may_not_sign_lists_is_one_sentence(tmp_path: Path) -> None:
    """No server would believe its list."""
    openssl(
        *("req", "-x509", "-newkey", "ed25519", "-noenc", "-subj", "/CN=Ours", "-days", "30"),
        *("-addext", "keyUsage=critical,keyCertSign"),
        *("-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"),
    )
    assert "lacks the key usage cRLSign" in run("revoke", "a1", "--out", tmp_path).refused()
    assert not (tmp_path / "ca.crl").exists()


@pytest.mark.parametrize("command", [("revoke", "a1"), ("crl",)])
def test_without_a_ca_there_is_one_sentence(tmp_path: Path, command: tuple[str, ...]) -> None:
    """It says how to make one; no directory appears."""
    error = run(*command, "--out", tmp_path / "none").refused()
    assert "has no CA" in error
    assert not (tmp_path / "none").exists()
