"""The text of a peer's error controls no terminal: each program escapes it."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.doctor_setup import DoctorSetup
from tests.support.harness import LOOPBACK, PATIENCE_S, ROOT
from tests.support.posing_postgres import SSL_REQUEST, Listening

EVIL = b"\x1b]0;title\x07\x1b[2Jevil"
SHOWN = "\\x1b]0;title\\x07\\x1b[2Jevil"


class AngryPostgres(Listening):
    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(4096):
            if data == SSL_REQUEST:
                connection.sendall(b"N")
                continue
            fields = b"SFATAL\0VFATAL\0C28000\0M" + EVIL + b"\0\0"
            connection.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)
            return


class AngryBroker(Listening):
    def serve(self, connection: socket.socket) -> None:
        info = {"server_id": "x", "version": "2.10.0", "max_payload": 1024}
        connection.sendall(b"INFO " + json.dumps(info).encode() + b"\r\n")
        connection.recv(4096)
        connection.sendall(b"-ERR '" + EVIL + b"'\r\n")
        connection.recv(4096)


def output_of(*arguments: str) -> str:
    program = [sys.executable, "-W", "error", "-m", *arguments]
    ended = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("command", [("doctor",), ("users", "list")], ids=" ".join)
def test_a_database(command: tuple[str, ...], tmp_path: Path, certs: Path) -> None:
    """Before it has proved anything."""
    with AngryPostgres() as database:
        url = f"postgresql://somebody:secret@{LOOPBACK}:{database.port}/name"
        setup = DoctorSetup(tmp_path, certs, url)
        setup.ask()
        config = str(tmp_path / "config.yaml")
        output = output_of("tornado_status", "--config", config, *command)
    assert SHOWN in output
    assert "\x1b" not in output


def test_a_broker() -> None:
    with AngryBroker() as broker:
        url = f"nats://{LOOPBACK}:{broker.port}"
        output = output_of("listeners", "--nats", url, "--insecure", "--timeout", "1")
    assert SHOWN in output
    assert "\x1b" not in output
