"""`status-certs` and openssl as tests run them, and the certificates that they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Result:
    status: int
    out: str
    err: str

    def refused(self) -> str:
        """Assert a command line error: status 2, one line on stderr, nothing else; return it."""
        assert self.status == 2, (self.out, self.err)
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.endswith("\n")
        assert "Traceback" not in self.err
        return self.err


def python(*arguments: str | Path, cwd: Path | None = None) -> Result:
    """A Python process that finds the packages wherever it runs."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def openssl(*arguments: str | Path) -> str:
    """The openssl command's stdout; its failure is an AssertionError with what it said."""
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def certificate_of(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Says so when it is about to wait for another run.
WAITING = """
import sys
from certs_gen.cli import main
sys.addaudithook(lambda event, _: event == "fcntl.flock" and print("waiting", flush=True))
sys.exit(main(sys.argv[1:]))
"""


# Dies, as by kill -9, just before its nth step on a file of the directory.
KILLED = """
import os, sys
from certs_gen.cli import main
left, directory = int(sys.argv[1]), sys.argv[2]
def step(event, args):
    global left
    if event in {"open", "os.remove", "os.rename"} and directory in str(args[0]):
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(step)
sys.exit(main(sys.argv[3:]))
"""


# A file system that takes keys, which are short, and then is full.
FULL = """
import resource, sys
from certs_gen.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
sys.exit(main(sys.argv[1:]))
"""
