"""Sealed announcements: who can read them, their keys, and the change of epochs."""

from __future__ import annotations

import base64
import itertools
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from certs_gen.authority import Authority
from tests.support.harness import (
    LOOPBACK,
    Heard,
    Server,
    StartServer,
    free_port,
    merge,
    rows,
    targets,
    wait_until,
)
from tests.support.listening import Listening, check_in, log_of, reading, verifying
from tests.support.trust_site import replace, revocation_list
from tornado_status.announce.group_key_keeper import reader_hash
from tornado_status.pki.trust_anchors import Anchors
from tornado_status.wire.datagram import decode_json
from tornado_status.wire.sealed_datagram import EpochSecret, Opener, Sealer, is_sealed

KEYS = ("GET", "/api/group-keys")
SEALED = 26  # bytes before the ciphertext


def start_sealed(start_server: StartServer, *encodings: str, **more: Any) -> Server:
    """Start a server that announces sealed datagrams, and those of other encodings if named."""
    port = free_port(socket.SOCK_DGRAM)
    announce = {"targets": targets(port, *(encodings or ("sealed",)))}
    server = start_server(**merge({"announce": announce}, more))
    server.announce_port = port
    return server


def group_keys(server: Server, count: int = 2) -> list[dict[str, Any]]:
    """Return the keys, once there are so many."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = server.request(*KEYS, cert="operator").json["keys"]
        return len(found) == count

    wait_until(are_there, "group keys")
    return found


def opener(keys: list[dict[str, Any]]) -> Opener:
    opener = Opener()
    secrets = [base64.urlsafe_b64decode(key["key"] + "=") for key in keys]
    opener.use(EpochSecret(key["epoch"], secret) for key, secret in zip(keys, secrets, strict=True))
    return opener


def test_a_reader_opens_them_and_nobody_else(start_server: StartServer) -> None:
    """Neither an e-mail nor an address is in the clear; inside is the signed datagram."""
    server = start_sealed(start_server, "sealed")
    with (
        Heard(server.announce_port) as heard,
        Listening(*reading(server)) as reader,
        Listening(*verifying(server.certs, server.announce_port)) as stranger,
    ):
        keys = group_keys(server)
        check_in(server, 20)
        assert reader.wait_for(20) == log_of(server)
        payload, _ = heard.one()
        assert is_sealed(payload)
        assert b"example.com" not in payload
        assert LOOPBACK.encode() not in payload
        assert decode_json(opener(keys).open(payload)).updates[0].seq == 1
        assert server.events("announcement not sent") == []
        stranger.says("it is sealed: only a reader's certificate (--cert, --key) can open it")
        assert stranger.shown == []
        assert "0 missed" in reader.stop()


def test_one_commit_in_the_clear_and_sealed_is_shown_once(start_server: StartServer) -> None:
    """A listener that hears both targets."""
    server = start_sealed(start_server, "sealed", "json")
    with Listening(*reading(server)) as reader:
        group_keys(server)
        check_in(server, 20)
        assert reader.wait_for(20) == log_of(server)
        reader.stop()
        assert len(reader.shown) == 20


def test_only_readers_get_the_keys(start_server: StartServer) -> None:
    server = start_sealed(start_server)
    now, following = group_keys(server)
    assert following["epoch"] == now["epoch"] + 1
    assert now["to"] == following["from"] < following["to"]
    assert now["key"] != following["key"]
    assert server.request(*KEYS).status == 403
    assert server.request(*KEYS, cert="operator").headers["Cache-Control"] == "no-store"


def test_without_a_sealed_target_there_are_no_keys(server: Server) -> None:
    assert server.request(*KEYS, cert="operator").json == {"keys": []}


def test_a_restart_goes_on_in_the_epoch_with_another_key(start_server: StartServer) -> None:
    """No nonce can repeat, though each process counts from zero."""
    server = start_sealed(start_server)
    keys = group_keys(server)
    with Heard(server.announce_port) as heard:
        check_in(server, 1)
        first, _ = heard.one()
    server.stop()
    server = start_sealed(start_server)
    assert group_keys(server) == keys
    with Heard(server.announce_port) as heard:
        check_in(server, 1)
        second, _ = heard.one()
    assert first[2:6] == second[2:6]
    assert first[6:18] != second[6:18]
    for payload in (first, second):
        assert opener(keys).open(payload)


def test_an_epoch_ends_while_a_listener_hears_it(start_server: StartServer) -> None:
    """It knows the next key long before."""
    server = start_sealed(start_server)
    with Listening(*reading(server)) as reader:
        now, following = group_keys(server)
        check_in(server, 10)
        reader.wait_for(10)
        rows(
            server.database_url,
            "UPDATE group_key SET starts_at = clock_timestamp() WHERE epoch = %s",
            following["epoch"],
        )
        wait_until(lambda: group_keys(server)[0]["epoch"] == following["epoch"], "the next epoch")
        with Heard(server.announce_port) as heard:
            check_in(server, 10)
            payload, _ = heard.one()
        assert opener([following]).open(payload)
        assert reader.wait_for(20) == log_of(server)
        assert "0 repaired, 0 missed" in reader.stop()
    assert now["epoch"] + 1 == following["epoch"]


def test_a_revoked_reader_opens_nothing_more(
    start_server: StartServer, certs: Path, tmp_path: Path
) -> None:
    """A new epoch at once: neither of the keys that the reader has opens what follows."""
    authority = Authority.load(certs)
    crl = tmp_path / "ca.crl"
    shutil.copy(certs / "ca.crl", crl)
    server = start_sealed(
        start_server, tls={"crl": str(crl)}, access={"admins": ["operator@example.com"]}
    )
    keys = group_keys(server)
    with Listening(*reading(server)) as reader, Heard(server.announce_port) as heard:
        check_in(server, 5)
        assert opener(keys).open(heard.one()[0])
        serial = x509.load_pem_x509_certificate((certs / "client.crt").read_bytes()).serial_number
        replace(crl, revocation_list(authority, [serial], number=10**18))
        wait_until(lambda: group_keys(server)[0]["epoch"] > keys[1]["epoch"], "a new epoch")
        fresh = group_keys(server)
        enrol(server, "first@example.com")
        payload = newest_of(heard, fresh)
        assert decode_json(opener(fresh).open(payload)).head == 6
        with pytest.raises(Exception, match="no key of epoch"):
            opener(keys).open(payload)
        assert reader.wait_for(6) == log_of(server)


def enrol(server: Server, email: str) -> None:
    assert server.request("PUT", f"/api/users/{email}", cert="operator").status == 201


def newest_of(heard: Heard, keys: list[dict[str, Any]]) -> bytes:
    """Return the first datagram of the epoch in use."""
    epoch = keys[0]["epoch"].to_bytes(4, "big")
    return next(p for p in (heard.one()[0] for _ in itertools.count()) if p[2:6] == epoch)


def test_other_readers_in_the_settings_begin_an_epoch(start_server: StartServer) -> None:
    server = start_sealed(start_server)
    before = group_keys(server)
    server.stop()
    server = start_sealed(start_server, access={"readers": ["operator@example.com", "*@x.org"]})
    wait_until(lambda: group_keys(server)[0]["epoch"] > before[1]["epoch"], "a new epoch")
    after = group_keys(server)
    server.stop()
    server = start_sealed(start_server, access={"readers": ["*@x.org", "operator@example.com"]})
    assert group_keys(server) == after  # the same readers


def test_a_database_that_lost_a_change_of_readers_is_told_again(start_server: StartServer) -> None:
    """A restored backup, or a standby that had not got it, knows a key of a removed reader."""
    server = start_sealed(start_server)
    before = group_keys(server)
    rows(
        server.database_url,
        "UPDATE group_key SET readers = 'others';"
        " SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    wait_until(lambda: group_keys(server)[0]["epoch"] > before[1]["epoch"], "a new epoch")


def test_two_servers_begin_one_epoch(start_server: StartServer) -> None:
    """Also when both find out at once."""
    first, second = start_sealed(start_server), start_sealed(start_server)
    keys = group_keys(first)
    assert group_keys(second) == keys
    with Heard(first.announce_port) as one, Heard(second.announce_port) as other:
        check_in(first, 1)
        check_in(second, 1)
        payloads = [one.one()[0], other.one()[0]]
    assert [bool(opener(keys).open(payload)) for payload in payloads] == [True, True]
    assert payloads[0][6:18] != payloads[1][6:18]


def test_forged_datagrams_stand_beside_true_ones(start_server: StartServer) -> None:
    """They fail before any signature is checked, and nothing is lost."""
    server = start_sealed(start_server)
    with Listening(*reading(server)) as reader, socket.socket(type=socket.SOCK_DGRAM) as forger:
        keys = group_keys(server)
        forged = Sealer(EpochSecret(keys[0]["epoch"], bytes(32)))
        for _ in range(20):
            for _ in range(200):
                forger.sendto(forged.seal(bytes(1400)), (LOOPBACK, server.announce_port))
            check_in(server, 10)
        assert reader.wait_for(200) == log_of(server)
        assert "forged 4000" in reader.stop()


def test_sealed_needs_a_signing_key(start_server: StartServer) -> None:
    server = start_sealed(start_server, announce={"signing_key": None}, wait=False)
    assert "announce.targets: encoding: sealed needs signing_key" in server.log.wait_end()


def test_readers_are_told_by_lists_cas_and_crls(certs: Path) -> None:
    cas = (x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes()),)
    anchors = Anchors(cas)
    base = reader_hash(["a@x.org", "b@x.org"], [], anchors)
    assert base == reader_hash(["b@x.org", "a@x.org"], [], anchors)
    others = [
        reader_hash(["a@x.org"], [], anchors),
        reader_hash(["a@x.org"], ["b@x.org"], anchors),
        reader_hash(["a@x.org", "b@x.org"], [], Anchors(())),
    ]
    assert len({base, *others}) == 4
