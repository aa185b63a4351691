"""`status-certs install` and a real Chromium: the board opens with the certificate, and only so."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from playwright.sync_api import BrowserContext, sync_playwright

from certs_gen.authority import Authority
from certs_gen.cli import main
from tests.support.browser import CHROMIUM
from tests.support.certs_tool import ROOT, Result
from tests.support.chains import root
from tests.support.harness import Server, StartServer, require

pytestmark = pytest.mark.once  # a browser, not our Python

PATIENCE_MS = 15_000
PASSWORD = "eight-letters"  # noqa: S105 -- of a file that lives for one test
EMAIL = "operator@example.com"

# Chromium asks the user which certificate to send, unless a policy of the machine says so. This
# policy is in a mount namespace of its own.
WRAPPER = """\
#!/bin/sh
exec unshare --mount sh -c '
mount -t tmpfs tmpfs /etc/chromium && mkdir -p /etc/chromium/policies/managed &&
cp "{policy}" /etc/chromium/policies/managed && exec "$0" "$@"' {chromium} "$@"
"""
POLICY = {"AutoSelectCertificateForUrls": ['{"pattern":"https://localhost","filter":{}}']}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def install(home: Path, bundle: Path, *options: str, password: str = PASSWORD) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "certs_gen", "install", str(bundle), *options],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home), "XDG_DATA_HOME": ""},
        input=f"{password}\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def make_bundle(certs: Path, directory: Path, email: str = EMAIL) -> Path:
    """Copy the CA, and let it issue a .p12 file."""
    for name in ("ca.crt", "ca.key"):
        shutil.copy(certs / name, directory / name)
    command = [sys.executable, "-m", "certs_gen", "client", email, "--out", str(directory)]
    options = ["--pkcs12", "--pkcs12-password", PASSWORD]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, timeout=60)
    return directory / f"{email}.p12"


@pytest.fixture
def visit(home: Path, tmp_path: Path) -> Callable[[Server], str]:
    """Open a server's board in a new Chromium of this home; return its heading or its error."""
    require("a browser", CHROMIUM is not None, "Debian: chromium")
    require("a mount namespace", os.geteuid() == 0, "run the tests as root")
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY))
    wrapper = tmp_path / "chromium"
    wrapper.write_text(WRAPPER.format(policy=policy, chromium=CHROMIUM))
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)

    def visit(server: Server) -> str:
        with sync_playwright() as playwright:
            context: BrowserContext = playwright.chromium.launch_persistent_context(
                tmp_path / "profile",
                executable_path=wrapper,
                args=["--no-sandbox"],
                env={**os.environ, "HOME": str(home), "XDG_DATA_HOME": ""},
            )
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            try:
                page.goto(f"https://localhost:{server.port}/")
                return page.inner_text("h1")
            except Exception as error:
                return str(error)
            finally:
                context.close()

    return visit


@pytest.mark.parametrize("started", [False, True], ids=["new", "started before"])
def test_the_board_opens_once_the_certificate_is_installed(
    start_server: StartServer,
    certs: Path,
    home: Path,
    tmp_path: Path,
    visit: Callable[[Server], str],
    started: bool,
) -> None:
    """In a home where Chromium has made its store already, or not. Not without the CA."""
    server = start_server()
    bundle = make_bundle(certs, tmp_path)
    store = home / ".pki" / "nssdb"
    if started:
        assert "ERR_CERT_AUTHORITY_INVALID" in visit(server)
        store = home / ".local" / "share" / "pki" / "nssdb"
    assert install(home, bundle, "--no-ca").status == 0
    assert "ERR_CERT_AUTHORITY_INVALID" in visit(server)
    done = install(home, bundle)
    assert (done.status, done.err) == (0, "")
    assert f"{EMAIL}: installed for Chromium and Chrome, in {store}\n" in done.out
    assert 'They now trust web sites with a certificate of "tornado_status dev' in done.out
    assert visit(server) == "Presence"
    assert install(home, bundle).out == done.out  # again, with the same result
    assert visit(server) == "Presence"


def test_a_snap_has_a_store_of_its_own(certs: Path, home: Path, tmp_path: Path) -> None:
    """Ubuntu's Chromium: the certificate is installed for it, too."""
    require("certutil", shutil.which("certutil") is not None, "Debian: libnss3-tools")
    (home / "snap" / "chromium" / "current").mkdir(parents=True)
    bundle = make_bundle(certs, tmp_path)
    assert install(home, bundle).status == 0
    for store in (home / ".pki/nssdb", home / "snap/chromium/current/.pki/nssdb"):
        listed = subprocess.run(
            ["certutil", "-L", "-d", f"sql:{store}"], capture_output=True, text=True, timeout=60
        ).stdout
        assert re.search(rf"{EMAIL} +u,u,u", listed)
        assert re.search(r"tornado_status development CA +C,,", listed)


def test_two_cas_of_one_common_name_are_both_trusted(home: Path, tmp_path: Path) -> None:
    """Each by its whole name; the user reads the common name."""
    require("certutil", shutil.which("certutil") is not None, "Debian: libnss3-tools")
    roots = [root(name=named("Root", organisation)) for organisation in ("A", "Bar, Inc")]
    client = Authority.create().issue_client(EMAIL)
    bundle = tmp_path / "two.p12"
    bundle.write_bytes(client.pkcs12(EMAIL, PASSWORD, [each.certificate for each in roots]))
    done = install(home, bundle)
    assert (done.status, done.err) == (0, "")
    assert done.out.count('They now trust web sites with a certificate of "Root". ') == 2
    listed = subprocess.run(
        ["certutil", "-L", "-d", f"sql:{home / '.pki/nssdb'}"],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert listed.count("C,,") == 2


def named(common_name: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def test_a_file_that_cannot_be_installed_is_one_sentence(
    certs: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is changed by a wrong password, another file, or without the tools."""
    require("certutil", shutil.which("certutil") is not None, "Debian: libnss3-tools")
    bundle = make_bundle(certs, tmp_path)
    wrong = "the password is wrong, or it is no .p12 file"
    assert wrong in install(home, bundle, password=f"not {PASSWORD}").refused()
    assert wrong in install(home, certs / "operator.crt").refused()
    assert "does not exist" in install(home, tmp_path / "none.p12").refused()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Debian and Ubuntu: libnss3-tools" in install(home, bundle).refused()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("platform", "step"), [("darwin", "on macOS, double-click"), ("win32", "on Windows, double-")]
)
def test_other_systems_are_told_their_own_steps(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, platform: str, step: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert main(["install", "operator.p12"]) == 2
    assert f"Chrome on Linux; {step}" in capsys.readouterr().err
