"""Install a .p12 file in the certificate store of Chromium and Chrome on Linux, an NSS database.

Runs pk12util and certutil, which know the database's format. Other systems and browsers have stores
of their own, and `STEPS` for their users.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from tornado_status.errors import ConfigError, IdentityError
from tornado_status.pki.identity import identify

TOOLS = ("certutil", "pk12util")
PACKAGES = "Debian and Ubuntu: libnss3-tools, Fedora: nss-tools, Arch: nss"
TIMEOUT_S = 60.0  # for one run of a tool
STEPS = {
    "darwin": "on macOS, double-click it: Keychain Access asks for the password; then restart the "
    "browser",
    "win32": "on Windows, double-click it: choose Current User, type the password, and let Windows "
    "select the store; then restart the browser",
}
FIREFOX = (
    "Firefox has a store of its own: Settings, Privacy & Security, View Certificates, "
    "Your Certificates, Import."
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of a .p12 file: the user's e-mail, and the CAs that are their own issuers."""

    path: Path
    password: str
    email: str
    roots: tuple[x509.Certificate, ...]


def check_system() -> list[str]:
    """Return the paths of `TOOLS`. Raises `ConfigError` if this system does not have them."""
    steps = STEPS.get(sys.platform)
    if steps is not None:
        raise ConfigError(f"install is for Chromium and Chrome on Linux; {steps}")
    found = [shutil.which(tool) for tool in TOOLS]
    paths = [path for path in found if path is not None]
    if len(paths) < len(TOOLS):
        raise ConfigError(f"certutil and pk12util are missing: install a package ({PACKAGES})")
    return paths


def read_bundle(path: Path, password: str) -> Bundle:
    """Read a .p12 file. Raises `ConfigError` for what the browser or the server would refuse."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}") from error
    try:
        key, certificate, others = pkcs12.load_key_and_certificates(content, password.encode())
    except ValueError as error:
        raise ConfigError(f"{path}: the password is wrong, or it is no .p12 file") from error
    if key is None or certificate is None:
        raise ConfigError(f"{path}: expected a certificate with its private key")
    try:
        identity = identify(certificate.public_bytes(serialization.Encoding.DER))
    except IdentityError as error:
        raise ConfigError(f"{path}: the server would refuse it: {error.detail}") from error
    roots = tuple(other for other in others if other.issuer == other.subject)
    return Bundle(path, password, identity.email, roots)


def databases(home: Path) -> list[Path]:
    """Return the directories of the databases that this user's browsers read.

    Chromium reads ~/.pki/nssdb if it is there, else the one in ~/.local/share. If there is none, it
    is the first.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    legacy, newer = home / ".pki" / "nssdb", data / "pki" / "nssdb"
    found = [newer if newer.exists() and not legacy.exists() else legacy]
    snap = home / "snap" / "chromium" / "current"  # Ubuntu's Chromium has a home of its own
    if snap.exists():
        found.append(snap / ".pki" / "nssdb")
    return found


def install(bundle: Bundle, directory: Path, tools: Sequence[str], *, trust_roots: bool) -> None:
    """Put a bundle into one database, which is made if need be. Raises `ConfigError`.

    With `trust_roots` the browser trusts web sites that its roots have issued to. Idempotent.
    """
    certutil, pk12util = tools
    database = f"sql:{directory}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot make the directory: {error.strerror}") from error
    if not (directory / "cert9.db").exists():
        _run([certutil, "-N", "-d", database, "--empty-password"])
    # By stdin: all users of the machine can read an option in `ps`.
    _run(
        [pk12util, "-i", str(bundle.path), "-d", database, "-w", "/dev/stdin"],
        f"{bundle.password}\n".encode(),
    )
    if trust_roots:
        for root in bundle.roots:
            pem = root.public_bytes(serialization.Encoding.PEM)
            # The whole name: NSS refuses one nickname for two CAs, and two may share a common name.
            nickname = root.subject.rfc4514_string()
            _run([certutil, "-A", "-d", database, "-n", nickname, "-t", "C,,", "-a"], pem)


def _run(command: Sequence[str], text: bytes = b"") -> None:
    tool = Path(command[0]).name
    try:
        done = subprocess.run(  # noqa: S603 -- the two tools alone
            command, input=text, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{tool} took longer than {TIMEOUT_S:g} s") from error
    except OSError as error:
        raise ConfigError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").split("\n")[0]
        raise ConfigError(f"{said or tool + ' failed'} (in {command[command.index('-d') + 1]})")
