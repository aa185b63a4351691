"""The key exchange is a post-quantum hybrid where both sides have OpenSSL 3.5 or later."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess

import pytest

from tests.support.certs_tool import openssl
from tests.support.harness import LOOPBACK, PATIENCE_S, Server, require
from tornado_status.commands.doctor import check_key_exchange
from tornado_status.config.settings import Settings

HYBRID = "X25519MLKEM768"


def has_hybrid(version: tuple[int, ...]) -> bool:
    return version[:2] >= (3, 5)


def negotiated_group(server: Server, *options: str) -> str:
    """Connect with `openssl s_client`; return the name of the group that it reports."""
    certs = server.certs
    files = {"-CAfile": "ca.crt", "-cert": "client.crt", "-key": "client.key"}
    identity = [word for option, name in files.items() for word in (option, str(certs / name))]
    connect = ["openssl", "s_client", "-connect", f"{LOOPBACK}:{server.port}"]
    done = subprocess.run(
        [*connect, "-verify_return_error", *identity, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # OpenSSL reports a curve in one form, the hybrid in another.
    found = re.search(
        r"(?m)^(?:(?:Server|Peer) Temp Key|Negotiated TLS1\.3 group): (\w+)", done.stdout
    )
    assert found, done.stdout
    return found[1]


def test_the_key_exchange_is_hybrid_where_both_sides_have_it(server: Server) -> None:
    """With an older OpenSSL on one side it is X25519, and the doctor notes an old one here."""
    require("openssl", shutil.which("openssl") is not None, "install openssl")
    installed = re.match(r"OpenSSL (\d+)\.(\d+)\.", openssl("version"))
    assert installed
    both = has_hybrid(ssl.OPENSSL_VERSION_INFO) and has_hybrid(tuple(map(int, installed.groups())))
    assert negotiated_group(server) == (HYBRID if both else "X25519")
    [finding] = check_key_exchange.examine(Settings())
    assert finding.level == ("ok" if has_hybrid(ssl.OPENSSL_VERSION_INFO) else "note")


def test_an_older_client_gets_the_curve(server: Server) -> None:
    """One that does not offer the hybrid."""
    require("openssl", shutil.which("openssl") is not None, "install openssl")
    assert negotiated_group(server, "-groups", "X25519:P-256") == "X25519"


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 0, 0, 19, 0), "note"), ((3, 4, 9, 0, 0), "note"), ((3, 5, 0, 0, 0), "ok")],
)
def test_the_doctor_notes_an_openssl_without_it(version: tuple[int, ...], level: str) -> None:
    """By its name, and once."""
    name = f"OpenSSL {'.'.join(map(str, version[:3]))}"
    [finding] = check_key_exchange.examine(Settings(), version, name)
    assert finding.level == level
    assert finding.sentence.startswith(name)


def test_behind_a_proxy_the_key_exchange_is_the_proxys() -> None:
    ingress = {"mode": "proxy", "trusted_proxies": ["10.0.0.5"]}
    behind = Settings.model_validate({"ingress": ingress})
    assert [*check_key_exchange.examine(behind, (3, 0, 0, 0, 0), "OpenSSL 3.0.0")] == []
