"""A setup that a test breaks, and the doctor that examines it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from certs_gen.authority import Authority, Credential
from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    free_port,
    merge,
    plain_environment,
    targets,
)


class DoctorSetup:
    """A setup with certificates of its own, to be broken."""

    def __init__(self, directory: Path, certs: Path, url: str) -> None:
        self.directory = directory
        self.certs = Path(shutil.copytree(certs, directory / "certs"))
        self.authority = Authority.load(self.certs)
        self.settings: dict[str, Any] = {
            "server": {"host": LOOPBACK, "port": free_port()},
            "tls": {"crl": "certs/ca.crl"},
            "database": {"url": url},
            "announce": {
                "source_port": free_port(socket.SOCK_DGRAM),
                "targets": targets(free_port(socket.SOCK_DGRAM)),
            },
            "management": {"port": free_port()},
        }

    def put(self, name: str, credential: Credential, *more: Credential) -> None:
        """Put a certificate, with others behind it, and its key in place."""
        chain = b"".join(each.certificate_pem() for each in (credential, *more))
        for suffix, content in ((".key", credential.key_pem()), (".crt", chain)):
            path = self.certs / f"{name}{suffix}"
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            path.chmod(0o600)

    def ask(self, *prefix: str, **overrides: Any) -> subprocess.CompletedProcess[str]:
        """Run the doctor."""
        config = self.directory / "config.yaml"
        config.write_text(yaml.safe_dump(merge(self.settings, overrides)))
        program = [sys.executable, "-W", "error", "-m", "tornado_status", "doctor"]
        return subprocess.run(
            [*prefix, *program, "--config", str(config)],
            cwd=ROOT,
            env=plain_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def well(self, *said: str, **overrides: Any) -> None:
        """Check that nothing is wrong, and that this is said."""
        done = self.ask(**overrides)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        last = done.stdout.splitlines()[-1]
        notes = sum(line.startswith("note ") for line in done.stdout.splitlines())
        assert last == (f"No problems found. Notes: {notes}." if notes else "All is well.")
        for sentence in said:
            assert sentence in done.stdout

    def wrong(self, *said: str, prefix: tuple[str, ...] = (), **overrides: Any) -> str:
        """Check that exactly so many problems are found, and that this is said of them."""
        done = self.ask(*prefix, **overrides)
        assert (done.returncode, done.stderr) == (1, ""), done.stdout + done.stderr
        problems = [x for x in done.stdout.splitlines() if x.startswith("PROBLEM")]
        assert len(problems) == len(said), done.stdout
        assert done.stdout.endswith(f"\nProblems found: {len(said)}.\n")
        for sentence in said:
            assert any(sentence in line for line in problems), done.stdout
        return done.stdout
