"""Signed datagrams: who may sign, what a signature covers, and how readers learn of keys."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from certs_gen.authority import Authority, Credential, common_name, leaf_extensions, new_key
from certs_gen.cli import main as certs_gen
from tests.support.announced import repeated_in, updates_in
from tests.support.harness import PATIENCE_S, Heard, Server, StartServer, free_port, wait_until
from tests.support.listening import log_of
from tornado_status.announce.announcer import Announcer, LogPosition
from tornado_status.config.settings import AnnounceSettings
from tornado_status.errors import AnnouncerError
from tornado_status.model.records import CommittedBatch, Event, LogStep
from tornado_status.pki import announcer_keys
from tornado_status.pki.announcer_keys import Signer, verify_announcer
from tornado_status.wire.datagram import (
    MAX_DATAGRAM,
    Datagram,
    decode_json,
    encode_json,
    split_signature,
)

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
EVENT = Event(42, "check-in", "valid_user@example.com", NOW, "10.0.0.7", 51514)
Hear = Callable[[], Awaitable[Datagram]]
STREAM = uuid.UUID("0b9f7a3e-6f0e-4d0c-9a53-2f8f6a1f4c11")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture(scope="module")
def credential(authority: Authority) -> Credential:
    return authority.issue_announcer()


def signed(count: int = 1, key: Ed25519PrivateKey | None = None) -> tuple[list[bytes], Signer]:
    signer = Signer(key or Ed25519PrivateKey.generate())
    events = [EVENT._replace(seq=42 + number) for number in range(count)]
    return list(encode_json(STREAM, NOW, 42, events, signer)), signer


def verifies(payload: bytes, announcer: announcer_keys.AnnouncerKey) -> bool:
    parts = split_signature(payload)
    return parts is not None and announcer.verify(parts[2], parts[1])


def test_one_signature_covers_a_datagram_of_more_than_twenty(
    authority: Authority, credential: Credential
) -> None:
    """Each datagram is whole JSON, ends in its signature, and fits in a frame."""
    assert isinstance(credential.key, Ed25519PrivateKey)
    payloads, signer = signed(60, credential.key)
    announcer = verify_announcer([credential.certificate], [authority.certificate])
    assert announcer.kid == signer.kid
    assert [len(decode_json(payload).updates) for payload in payloads] == [25, 25, 10]
    for payload in payloads:
        assert len(payload) <= MAX_DATAGRAM
        assert decode_json(payload).kid == signer.kid
        assert json.loads(payload)["sig"]
        assert verifies(payload, announcer)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_can_be_changed(position: int, flip: int) -> None:
    """With any bit flipped the signature is not in its place, or does not verify."""
    key = Ed25519PrivateKey.generate()
    [payload], signer = signed(1, key)
    announcer = announcer_keys.AnnouncerKey(signer.kid, key.public_key(), ((NOW, NOW),))
    assert verifies(payload, announcer)
    changed = bytearray(payload)
    changed[position % len(changed)] ^= flip
    assert not verifies(bytes(changed), announcer)


def test_nothing_may_follow_or_precede_what_is_signed(credential: Credential) -> None:
    """The signature is looked for at the end only: a search would be led to other bytes."""
    assert isinstance(credential.key, Ed25519PrivateKey)
    [payload], signer = signed(1, credential.key)
    announcer = announcer_keys.AnnouncerKey(signer.kid, credential.key.public_key(), ((NOW, NOW),))
    for forged in (
        payload[:-1] + b',"head":99}',
        payload + b" ",
        b" " + payload,
        payload[:-1] + payload[-97:],
        payload[:-3] + (b'Q"}' if payload[-3:-2] == b"A" else b'A"}'),
    ):
        assert not verifies(forged, announcer)


def test_only_a_certificate_made_for_announcing_is_trusted(
    authority: Authority, credential: Credential
) -> None:
    """Not a client's, not a server's, not another CA's, not a CA, not another kind of key."""
    cas = [authority.certificate]
    [(_, last)] = verify_announcer([credential.certificate], cas).validity
    assert last == credential.certificate.not_valid_after_utc
    other = Authority.create()
    with pytest.raises(AnnouncerError, match="not issued by a trusted CA"):
        verify_announcer([other.issue_announcer().certificate], cas)
    for wrong in (authority.issue_client("a@example.com"), authority.issue_server(["localhost"])):
        with pytest.raises(AnnouncerError, match="not an Ed25519 key"):
            verify_announcer([wrong.certificate], cas)
    key = Ed25519PrivateKey.generate().public_key()
    client = authority.certify(
        key,
        common_name("a@example.com"),
        leaf_extensions([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]),
        not_before=NOW,
        not_after=NOW + datetime.timedelta(days=1),
    )
    with pytest.raises(AnnouncerError, match="not meant for announcing"):
        verify_announcer([client], cas)
    with pytest.raises(AnnouncerError, match="no certificate"):
        verify_announcer([], cas)


def test_an_intermediate_ca_may_certify_an_announcer(authority: Authority) -> None:
    """It comes along behind the announcer's certificate; without it nothing is trusted."""
    key = new_key("ec")
    intermediate = Authority(
        authority.certify(
            key.public_key(),
            common_name("intermediate"),
            [
                (x509.BasicConstraints(ca=True, path_length=0), True),
            ],
            not_before=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1),
            not_after=datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30),
        ),
        key,
    )
    leaf = intermediate.issue_announcer(days=1)
    cas = [authority.certificate]
    assert verify_announcer([leaf.certificate, intermediate.certificate], cas).kid
    with pytest.raises(AnnouncerError, match="not issued by a trusted CA"):
        verify_announcer([leaf.certificate], cas)
    posing = authority.issue_client("a@example.com")  # no CA, whatever it signs
    with pytest.raises(AnnouncerError, match="not issued by a trusted CA"):
        verify_announcer([leaf.certificate, posing.certificate], cas)


def test_the_server_signs_and_publishes_its_announcer(
    certs: Path, start_server: StartServer
) -> None:
    """Readers fetch the certificate that the datagrams' signatures verify with."""
    server = start_server()
    with Heard(server.announce_port) as listener:
        assert server.request("POST", "/api/client").status == 204
        payload, _ = listener.one()
    published = wait_until(
        lambda: server.request("GET", "/api/announcers", cert="operator").json["announcers"],
        "the announcer to be published",
    )
    cas = x509.load_pem_x509_certificates((certs / "ca.crt").read_bytes())
    [chain] = [x509.load_pem_x509_certificates(pem.encode()) for pem in published]
    assert verifies(payload, verify_announcer(chain, cas))
    assert server.request("GET", "/api/announcers").status == 403


def test_a_key_is_rotated_without_a_gap(
    certs: Path, start_server: StartServer, tmp_path: Path
) -> None:
    """The next one is published before it signs, the old one for as long as it may be needed."""
    certs = Path(shutil.copytree(certs, tmp_path / "certs"))
    assert certs_gen(["announcer", "--name", "next", "--out", str(certs)]) == 0
    first = start_server(
        announce={
            "signing_key": str(certs / "announcer.key"),
            "next_certificate": str(certs / "next.crt"),
        }
    )

    def published(server: Server) -> set[str]:
        page = server.request("GET", "/api/announcers", cert="operator").json
        return set(page["announcers"])

    both = {(certs / f"{name}.crt").read_text() for name in ("announcer", "next")}
    wait_until(lambda: published(first) == both, "both to be published")
    first.stop()
    second = start_server(announce={"signing_key": str(certs / "next.key")})
    wait_until(lambda: published(second) == both, "both to be published still")
    with Heard(second.announce_port) as listener:
        assert second.request("POST", "/api/client").status == 204
        payload, _ = listener.one()
    next_key = x509.load_pem_x509_certificate((certs / "next.crt").read_bytes()).public_key()
    assert decode_json(payload).kid == announcer_keys.key_id(next_key)  # type: ignore[arg-type]
    # An hour after its last datagram the old one is gone.
    second.rows(
        "UPDATE announcer SET used_at = used_at - interval '2 hours' WHERE certificate = %s",
        (certs / "announcer.crt").read_text(),
    )
    assert published(second) == {(certs / "next.crt").read_text()}


def test_each_datagram_repeats_the_last_events(start_server: StartServer) -> None:
    """As many as are configured; each is what the log has."""
    server = start_server(announce={"repeat": 3})
    with Heard(server.announce_port) as listener:
        payloads = []
        for _ in range(6):
            assert server.request("POST", "/api/client").status == 204
            payloads.append(listener.one()[0])
    log = log_of(server)
    assert [updates_in(payload) for payload in payloads] == [[event] for event in log]
    for number, payload in enumerate(payloads):
        assert repeated_in(payload) == log[max(0, number - 3) : number][::-1]


@contextlib.asynccontextmanager
async def announcing(position: LogPosition) -> AsyncIterator[tuple[Announcer, Hear]]:
    """Yield an announcer whose heartbeats are a minute apart, and what hears it."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        port = sock.getsockname()[1]
        target = {"kind": "unicast", "address": "127.0.0.1", "port": port}
        source_port = free_port(socket.SOCK_DGRAM)
        announcer = Announcer(
            AnnounceSettings.model_validate(
                {"source_port": source_port, "heartbeat_s": 60, "targets": [target]}
            )
        )

        async def hear() -> Datagram:
            async with asyncio.timeout(PATIENCE_S):
                return decode_json(await loop.sock_recv(sock, 2048))

        announcer.open()
        announcer.start(position)
        try:
            yield announcer, hear
        finally:
            await announcer.close()


def test_a_new_log_begins_with_a_heartbeat_that_says_how() -> None:
    """At once, also in silence: listeners hold its events until they know its parent."""

    async def run() -> None:
        log = CommittedBatch(STREAM, 41, ())
        async with announcing(lambda: log) as (announcer, hear):
            assert (await hear()).parent is None  # the first one, as ever
            announcer.announce(CommittedBatch(STREAM, 42, [EVENT]))
            assert (await hear()).updates == (EVENT,)
            silent, busy = uuid.uuid4(), uuid.uuid4()
            log = CommittedBatch(silent, 42, (), LogStep(silent, STREAM, 42))
            heartbeat = await hear()
            assert (heartbeat.log_id, heartbeat.head, heartbeat.updates) == (silent, 42, ())
            assert heartbeat.parent == LogStep(silent, STREAM, 42)
            assert heartbeat.repeated == ()
            step = LogStep(busy, silent, 42)
            event = EVENT._replace(seq=43)
            log = CommittedBatch(busy, 43, (), step)
            announcer.announce(CommittedBatch(busy, 43, [event], step))
            first, second = await hear(), await hear()
            assert (first.log_id, first.updates, first.parent) == (busy, (), step)
            assert (second.log_id, second.updates, second.parent) == (busy, (event,), None)

    asyncio.run(run())


def test_without_a_key_the_server_warns(start_server: StartServer) -> None:
    """It announces unsigned, and the operator knows."""
    server = start_server(announce={"signing_key": None})
    assert server.events("announcements are not signed, they can be forged")
    with Heard(server.announce_port) as listener:
        assert server.request("POST", "/api/client").status == 204
        assert split_signature(listener.one()[0]) is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("nowhere.key", "announce.signing_key: no file"),
        ("client.key", "is no Ed25519 key"),
        ("client.crt", "holds a certificate, not a private key"),
    ],
)
def test_a_wrong_key_is_one_line(
    certs: Path, start_server: StartServer, key: str, message: str
) -> None:
    """It names the key and the file."""
    server = start_server(wait=False, announce={"signing_key": str(certs / key)})
    assert server.process.wait(PATIENCE_S) == 2
    assert message in server.log.wait_end()


def test_a_certificate_of_another_key_is_one_line(
    certs: Path, start_server: StartServer, tmp_path: Path
) -> None:
    """Key and certificate belong together."""
    other = tmp_path / "other"
    assert certs_gen(["--out", str(other)]) == 0
    (other / "announcer.key").rename(tmp_path / "mixed.key")
    (tmp_path / "mixed.crt").write_bytes((certs / "announcer.crt").read_bytes())
    server = start_server(wait=False, announce={"signing_key": str(tmp_path / "mixed.key")})
    assert server.process.wait(PATIENCE_S) == 2
    assert "mixed.crt is the certificate of another key" in server.log.wait_end()


def test_an_announcer_of_another_ca_is_a_warning(
    certs: Path, start_server: StartServer, tmp_path: Path
) -> None:
    """The server announces all the same: its listeners may know better."""
    other = tmp_path / "other"
    assert certs_gen(["--out", str(other)]) == 0
    server = start_server(announce={"signing_key": str(other / "announcer.key")})
    [warning] = server.events("listeners of this CA will refuse the announcer")
    assert warning["reason"] == "not issued by a trusted CA"
    assert server.request("POST", "/api/client").status == 204
