"""The pages on listeners and the verifier in docs/protocol.md: what stands there was run."""

from __future__ import annotations

import ast
import base64
import datetime
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag

from certs_gen.cli import main as certs_gen
from listeners.cli import main
from listeners.receive import udp_receiver
from listeners.verify import verifier
from tests.support.harness import (
    PATIENCE_S,
    ROOT,
    Heard,
    Lines,
    Server,
    plain_environment,
    require,
)
from tornado_status.pki.announcer_keys import PURPOSE
from tornado_status.wire.sealed_datagram import EpochSecret, Sealer

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
REFERENCE = (ROOT / "docs" / "listener-reference.md").read_text("utf-8")
LISTENERS = (ROOT / "docs" / "listeners.md").read_text("utf-8") + REFERENCE


MAX_LINES = 30  # of a verifier


def program_in(page: str, language: str = "python", *, defines: str = "") -> str:
    found = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    [program] = [each for each in found if defines in each]
    assert isinstance(program, str)
    return program


def test_the_pages_verifier_accepts_real_datagrams_and_nothing_else(
    server: Server, heard: Heard
) -> None:
    """It needs nothing but `cryptography`, and knows nothing of this project's code."""
    program = program_in(PROTOCOL, defines="def verify(")
    assert len(program.splitlines()) <= MAX_LINES
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(program))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names == {"cryptography"}
    defined: dict[str, Any] = {}
    exec(program, defined)  # noqa: S102 - the page's own
    assert server.request("POST", "/api/client").status == 204
    datagram, _ = heard.one()
    now = datetime.datetime.now(datetime.UTC)
    certs = server.certs
    ca, announcer = ((certs / name).read_bytes() for name in ("ca.crt", "announcer.crt"))
    key = defined["announcer_key"](announcer, ca, now)
    message = defined["verify"](datagram, key, now)
    assert message == json.loads(datagram)
    assert message["events"][0]["email"] == "valid_user@example.com"
    changed = datagram.replace(b"valid_user", b"other_user")
    for wrong, moment in (
        (changed, now),
        (datagram[:-1], now),
        (datagram + b" ", now),
        (datagram, now + datetime.timedelta(seconds=100)),
    ):
        with pytest.raises((AssertionError, InvalidSignature)):
            defined["verify"](wrong, key, moment)
    for name in ("client.crt", "server.crt"):
        with pytest.raises(AssertionError, match="not meant for announcing"):
            defined["announcer_key"]((certs / name).read_bytes(), ca, now)


def test_the_pages_program_opens_sealed_datagrams() -> None:
    """With the keys of the page's own example."""
    defined: dict[str, Any] = {}
    exec(program_in(PROTOCOL, defines="def open_sealed("), defined)  # noqa: S102 - the page's own
    [example] = re.findall(r'^\{"keys":\[.*\]\}$', PROTOCOL, re.MULTILINE)
    keys = {
        key["epoch"]: base64.urlsafe_b64decode(key["key"] + "=")
        for key in json.loads(example)["keys"]
    }
    for epoch, secret in keys.items():
        sealed = Sealer(EpochSecret(epoch, secret)).seal(b"{}")
        assert defined["open_sealed"](sealed, keys) == b"{}"
        with pytest.raises(InvalidTag):
            defined["open_sealed"](sealed[:-1] + bytes([sealed[-1] ^ 1]), keys)


DRIVER = """\
import { readFileSync } from 'node:fs'
import { announcerKey, verify } from './verifier.mjs'

for (const line of readFileSync(0, 'utf8').trim().split('\\n')) {
  const { announcer, ca, datagram, now } = JSON.parse(line)
  try {
    const key = announcerKey(announcer, ca, new Date(now))
    console.log(JSON.stringify(verify(Buffer.from(datagram, 'hex'), key, new Date(now))))
  } catch (error) {
    console.log(JSON.stringify(error.message))
  }
}
"""


def test_the_pages_verifier_in_javascript_does_the_same(
    server: Server, heard: Heard, tmp_path: Path
) -> None:
    """It needs nothing but Node.js."""
    require("node", shutil.which("node") is not None, "install nodejs")
    program = program_in(PROTOCOL, "javascript")
    assert len(program.splitlines()) <= MAX_LINES
    assert re.findall(r"from '(.*)'", program) == ["node:crypto"]
    (tmp_path / "verifier.mjs").write_text(program)
    (tmp_path / "driver.mjs").write_text(DRIVER)
    assert server.request("POST", "/api/client").status == 204
    datagram, _ = heard.one()
    now = datetime.datetime.now(datetime.UTC)
    late = now + datetime.timedelta(seconds=100)
    other = tmp_path / "other"
    assert certs_gen(["--out", str(other)]) == 0
    names = ("announcer.crt", "ca.crt", "client.crt", "server.crt")
    announcer, ca, *wrong = ((server.certs / name).read_text() for name in names)
    stranger = (other / "ca.crt").read_text()
    cases = [
        (announcer, ca, datagram, now),
        (announcer, ca, datagram.replace(b"valid_user", b"other_user"), now),
        (announcer, ca, datagram[:-1], now),
        (announcer, ca, datagram + b" ", now),
        (announcer, ca, datagram, late),
        (announcer, stranger, datagram, now),
        *((certificate, ca, datagram, now) for certificate in wrong),
    ]
    given = [
        json.dumps({"announcer": a, "ca": c, "datagram": d.hex(), "now": moment.isoformat()})
        for a, c, d, moment in cases
    ]
    ran = subprocess.run(
        ["node", "driver.mjs"],
        cwd=tmp_path,
        input="\n".join(given),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    assert said == [
        json.loads(datagram),
        "another signature",
        "not signed by this key",
        "not signed by this key",
        "not now",
        "not issued by this CA",
        "not meant for announcing",
        "not meant for announcing",
    ]


def test_the_page_names_the_purpose_and_shows_a_vector() -> None:
    """The test vectors for a receiver in another language."""
    vector = json.loads((ROOT / "tests/vectors/signed-v2-one-check-in.json").read_text())
    assert PROTOCOL.count(PURPOSE.dotted_string) == 3
    assert f"```\n{vector['text']}\n```" in PROTOCOL


def test_the_librarys_example_runs(server: Server, tmp_path: Path) -> None:
    """As it stands, but for the ports of this test's server."""
    program = program_in(REFERENCE)
    url = 'urls=["https://localhost:8443"],'
    assert program.count(url) == 1
    (tmp_path / "certs").symlink_to(server.certs)
    (tmp_path / "example.py").write_text(
        program.replace(url, f'urls=["{server.url}"], port={server.announce_port},')
    )
    assert server.request("POST", "/api/client").status == 204
    (tmp_path / "listener.json").write_text(
        json.dumps({"log": str(server.rows("SELECT log_id FROM head")[0][0]), "seq": 0})
    )
    with subprocess.Popen(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path,
        env={**plain_environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        out, err = Lines(process.stdout), Lines(process.stderr)
        try:
            out.wait_for(lambda line: line.startswith("update 1 valid_user@example.com"), "1")
            assert server.request("POST", "/api/client").status == 204
            out.wait_for(lambda line: line.startswith("update 2 valid_user@example.com"), "2")
        finally:
            process.kill()
            process.wait(PATIENCE_S)
            assert "Traceback" not in err.wait_end()
            out.wait_end()


def test_every_option_in_the_pages_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """And the numbers in it are the program's. Some are of status-certs, which makes the keys."""
    for program, arguments in ((main, []), (certs_gen, ["server"]), (certs_gen, ["copy"])):
        with pytest.raises(SystemExit):
            program([*arguments, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]*", LISTENERS)) <= known | {"--help"}
    source = "".join(path.read_text() for path in (ROOT / "listeners").rglob("*.py"))
    for reason in verifier.UNVERIFIED_REASONS | set(
        re.findall(r'DatagramError\(\s*"([a-z-]+)"', source)
    ):
        assert f"`{reason}`" in REFERENCE, reason
    seconds = ["zero", "one", "two", "three"][int(udp_receiver.REJOIN_S)]
    assert f"Every {seconds} seconds" in REFERENCE
