"""`status-certs copy`: each machine gets what it needs, and no other key."""

from __future__ import annotations

import shutil
import ssl
import stat
from pathlib import Path

import pytest

from certs_gen.cli import main
from tests.support.harness import StartServer, merge

NEEDED = {
    "server": {"ca.crt", "ca.crl", "server.crt", "server.key", "announcer.crt", "announcer.key"},
    "listener": {"ca.crt", "announcer.crt", "operator.crt", "operator.key"},
    "client": {"ca.crt", "client.crt", "client.key"},
}


@pytest.fixture
def own_certs(certs: Path, tmp_path: Path) -> Path:
    """A set to be changed."""
    return shutil.copytree(certs, tmp_path / "certs")


def copy(certs: Path, role: str, to: Path, *more: str) -> int:
    return main(["copy", role, str(to), "--out", str(certs), *more])


@pytest.mark.parametrize("role", NEEDED)
def test_a_role_gets_its_files_and_no_others(certs: Path, tmp_path: Path, role: str) -> None:
    """As they are, keys for their owner alone, and never the CA's."""
    to = tmp_path / "below" / role
    assert copy(certs, role, to) == 0
    assert {path.name for path in to.iterdir()} == NEEDED[role]
    for path in to.iterdir():
        assert path.read_bytes() == (certs / path.name).read_bytes()
        private = not stat.S_IMODE(path.stat().st_mode) & 0o077
        assert private == (path.suffix == ".key")


def test_another_copy_changes_only_what_changed(
    own_certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A running server reads nothing anew without a reason."""
    to = tmp_path / "server"
    assert copy(own_certs, "server", to) == 0
    before = {path.name: path.stat().st_ino for path in to.iterdir()}
    capsys.readouterr()
    assert copy(own_certs, "server", to) == 0
    assert capsys.readouterr().out == ""
    assert {path.name: path.stat().st_ino for path in to.iterdir()} == before

    assert main(["crl", "--out", str(own_certs)]) == 0
    assert main(["server", "--force", "--out", str(own_certs)]) == 0
    capsys.readouterr()
    assert copy(own_certs, "server", to) == 0
    changed = {name for name, inode in before.items() if (to / name).stat().st_ino != inode}
    assert changed == {"ca.crl", "server.crt", "server.key"}
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} == changed


def test_somebody_elses_certificate_has_the_name_that_programs_look_for(
    own_certs: Path, tmp_path: Path
) -> None:
    assert main(["client", "ada@example.com", "--out", str(own_certs)]) == 0
    for role, stem in (("client", "client"), ("listener", "operator")):
        to = tmp_path / role
        assert copy(own_certs, role, to, "--email", "Ada@Example.com") == 0
        assert {path.name for path in to.iterdir()} == NEEDED[role]
        for suffix in ("crt", "key"):
            original = own_certs / f"ada@example.com.{suffix}"
            assert (to / f"{stem}.{suffix}").read_bytes() == original.read_bytes()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(to / f"{stem}.crt", to / f"{stem}.key")  # they belong together


def test_a_copy_that_cannot_be_made_is_one_line(
    own_certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for arguments, said in (
        (("client", tmp_path / "x", "--email", "nobody@example.com"), "cannot read it"),
        (("server", tmp_path / "x", "--email", "ada@example.com"), "has no e-mail"),
        (("client", tmp_path / "file" / "x"), "cannot make the directory"),
        (("client", own_certs), "a directory of their own"),
    ):
        role, to, *more = arguments
        assert copy(own_certs, str(role), Path(to), *map(str, more)) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert copy(tmp_path / "nowhere", "client", tmp_path / "x") == 2
    assert "make a set first" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_server_serves_with_its_copy_alone(
    certs: Path, start_server: StartServer, tmp_path: Path
) -> None:
    """Each role gets enough."""
    server, client = tmp_path / "handed" / "server", tmp_path / "handed" / "client"
    assert copy(certs, "server", server) == 0
    assert copy(certs, "client", client) == 0
    tls = {
        "certificate": str(server / "server.crt"),
        "private_key": str(server / "server.key"),
        "client_ca": str(server / "ca.crt"),
        "crl": str(server / "ca.crl"),
    }
    running = start_server(
        **merge({"tls": tls}, {"announce": {"signing_key": str(server / "announcer.key")}})
    )
    running.certs = client
    assert running.request("POST", "/api/client").status == 204
