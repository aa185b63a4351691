"""The pages on listeners and the verifier in docs/protocol.md: what stands there was run."""

from __future__ import annotations

import ast
import base64
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    load_pem_private_key,
    load_pem_public_key,
)

from certs_gen.cli import main as certs_gen
from listeners.board import app
from listeners.cli import main
from listeners.order import held_datagrams, log_follower, retry_timer, sequence
from listeners.receive import fair_queue, sockets, udp_receiver
from listeners.repair import key_refresh
from listeners.verify import verification, verifier
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
from tornado_status.wire import sealed_datagram
from tornado_status.wire.datagram import MAX_DATAGRAM
from tornado_status.wire.sealed_datagram import EpochSecret, Opener, Sealer

PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
REFERENCE = (ROOT / "docs" / "listener-reference.md").read_text("utf-8")
LISTENERS = (ROOT / "docs" / "listeners.md").read_text("utf-8") + REFERENCE


MAX_LINES = 30  # of a verifier


def program_in(page: str, language: str = "python", *, defines: str = "") -> str:
    found = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    [program] = [each for each in found if defines in each]
    assert isinstance(program, str)
    return program


def other_last_character(datagram: bytes) -> bytes:
    """Return the same signature in base64url, with other bits behind its end."""
    at = len(datagram) - 3
    return datagram[:at] + bytes([datagram[at] + 1]) + datagram[at + 1 :]


def ca_for_announcing(certs: Path) -> bytes:
    """Return a CA's certificate that is otherwise right for an announcer."""
    issuer = x509.load_pem_x509_certificate((certs / "ca.crt").read_bytes())
    issuer_key = load_pem_private_key((certs / "ca.key").read_bytes(), None)
    assert isinstance(issuer_key, EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(
            issuer.subject, x509.Name([]), Ed25519PrivateKey.generate().public_key()
        )
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([PURPOSE]), critical=False)
        .sign(issuer_key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


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
        (other_last_character(datagram), now),
        (datagram, now + datetime.timedelta(seconds=100)),
    ):
        with pytest.raises((AssertionError, InvalidSignature)):
            defined["verify"](wrong, key, moment)
    others = [(certs / name).read_bytes() for name in ("client.crt", "server.crt")]
    for certificate in (*others, ca_for_announcing(certs)):
        with pytest.raises(AssertionError, match="not meant for announcing"):
            defined["announcer_key"](certificate, ca, now)


def test_the_pages_key_verifies_its_signed_example() -> None:
    """Without a server: a receiver in another language begins with it."""
    defined: dict[str, Any] = {}
    exec(program_in(PROTOCOL, defines="def verify("), defined)  # noqa: S102 - the page's own
    [pem] = re.findall(r"-----BEGIN PUBLIC KEY-----.*-----END PUBLIC KEY-----", PROTOCOL, re.DOTALL)
    key = load_pem_public_key(pem.encode())
    datagram = signed_example()
    now = datetime.datetime.fromisoformat(json.loads(datagram)["sent"])
    assert defined["verify"](datagram, key, now)["head"] == 42


def signed_example() -> bytes:
    [example] = re.findall(r'^\{"v":2.*"sig":.*\}$', PROTOCOL, re.MULTILINE)
    assert isinstance(example, str)
    return example.encode()


def group_keys_of_the_page() -> dict[int, bytes]:
    [example] = re.findall(r'^\{"keys":\[.*\]\}$', PROTOCOL, re.MULTILINE)
    return {
        key["epoch"]: base64.urlsafe_b64decode(key["key"] + "=")
        for key in json.loads(example)["keys"]
    }


def sealed_example() -> bytes:
    [(length, block)] = re.findall(
        r"these (\d+) bytes are the signed\s+example of.*?```\n([0-9a-f\n]+)```",
        PROTOCOL,
        re.DOTALL,
    )
    sealed = bytes.fromhex(block)
    assert len(sealed) == int(length)
    return sealed


def test_the_pages_sealed_example_is_what_the_codec_writes() -> None:
    """And opens to the page's signed example."""
    sealed = sealed_example()
    epoch, sender, count = int.from_bytes(sealed[2:6]), sealed[6:18], int.from_bytes(sealed[18:26])
    secret = EpochSecret(epoch, group_keys_of_the_page()[epoch])
    opener = Opener()
    opener.use([secret])
    assert opener.open(sealed) == signed_example()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: sender[:size])
        sealer = Sealer(secret)
    for _ in range(count):
        sealer.seal(b"")
    assert sealer.seal(signed_example()) == sealed


def test_the_pages_program_opens_sealed_datagrams() -> None:
    """With the keys of the page's own example."""
    defined: dict[str, Any] = {}
    exec(program_in(PROTOCOL, defines="def open_sealed("), defined)  # noqa: S102 - the page's own
    keys = group_keys_of_the_page()
    assert defined["open_sealed"](sealed_example(), keys) == signed_example()
    for epoch, secret in keys.items():
        sealed = Sealer(EpochSecret(epoch, secret)).seal(b"{}")
        assert defined["open_sealed"](sealed, keys) == b"{}"
        with pytest.raises(InvalidTag):
            defined["open_sealed"](sealed[:-1] + bytes([sealed[-1] ^ 1]), keys)


OPENING_DRIVER = """\
import { readFileSync } from 'node:fs'
import { openSealed } from './opener.mjs'

const { keys, datagrams } = JSON.parse(readFileSync(0, 'utf8'))
const known = new Map(keys.map(([epoch, key]) => [epoch, Buffer.from(key, 'hex')]))
for (const datagram of datagrams) {
  try {
    console.log(openSealed(Buffer.from(datagram, 'hex'), known).toString('hex'))
  } catch (error) {
    console.log('refused')
  }
}
"""


def test_the_pages_program_in_javascript_opens_sealed_datagrams(tmp_path: Path) -> None:
    """It needs nothing but Node.js."""
    require("node", shutil.which("node") is not None, "install nodejs")
    program = program_in(PROTOCOL, "javascript", defines="function openSealed(")
    assert len(program.splitlines()) <= MAX_LINES
    assert re.findall(r"from '(.*)'", program) == ["node:crypto"]
    (tmp_path / "opener.mjs").write_text(program)
    (tmp_path / "driver.mjs").write_text(OPENING_DRIVER)
    keys, sealed = group_keys_of_the_page(), sealed_example()
    others = [Sealer(EpochSecret(*key)).seal(b"{}") for key in keys.items()]
    unknown = Sealer(EpochSecret(9, bytes(32))).seal(b"{}")
    changed = [
        sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        for at in (1, 17, 25, 40, len(sealed) - 1)
    ]
    given = [sealed, *others, unknown, sealed[:41], b"", signed_example(), *changed]
    ran = subprocess.run(
        ["node", "driver.mjs"],
        cwd=tmp_path,
        input=json.dumps(
            {
                "keys": [[epoch, key.hex()] for epoch, key in keys.items()],
                "datagrams": [each.hex() for each in given],
            }
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 0, ran.stderr
    opened = [signed_example().hex(), *[b"{}".hex()] * len(others)]
    assert ran.stdout.split() == opened + ["refused"] * (len(given) - len(opened))


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
    program = program_in(PROTOCOL, "javascript", defines="function verify(")
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
        (announcer, ca, other_last_character(datagram), now),
        (announcer, ca, datagram, late),
        (announcer, stranger, datagram, now),
        *((certificate, ca, datagram, now) for certificate in wrong),
        (ca_for_announcing(server.certs).decode(), ca, datagram, now),
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
        "not signed by this key",
        "not now",
        "not issued by this CA",
        "not meant for announcing",
        "not meant for announcing",
        "not meant for announcing",
    ]


def test_the_page_names_the_purpose_and_shows_a_vector() -> None:
    """The test vectors for a receiver in another language."""
    vector = json.loads((ROOT / "tests/vectors/signed-v2-one-check-in.json").read_text())
    assert PROTOCOL.count(PURPOSE.dotted_string) == 3
    assert f"```\n{vector['text']}\n```" in PROTOCOL
    assert f"```\n{vector['public_key']}```" in PROTOCOL


def test_the_page_has_the_listeners_times_and_sizes() -> None:
    """Those of the section on how a receiver works."""
    page = " ".join(PROTOCOL[PROTOCOL.index("## How a receiver works") :].split())
    page = page[: page.index("## Datagrams")]
    first, last = retry_timer.FIRST_PAUSE_S, retry_timer.MAX_PAUSE_S
    for words in (
        f"of {sockets.RECEIVE_BUFFER // 2**20} MiB",
        f"after {key_refresh.REFRESH_S / 2:.0f} to {key_refresh.REFRESH_S:.0f} seconds",
        f"Hold later ones, {sequence.MAX_PENDING:,} at most",
        f"Wait {sequence.WINDOW_S * 1000:.0f} ms for datagrams",
        f"a random time up to {retry_timer.FIRST_JITTER_S * 1000:.0f} ms. Then",
        f"&limit={sequence.PAGE}`",
        f"pauses that grow from {first:g} to {last:g} s",
        f"silence: {app.SILENCE_S:.0f} seconds by default",
        f"more than {sealed_datagram.MAX_SEALED:,} bytes",
        f"at most {MAX_DATAGRAM:,} bytes",
        f"at most {verifier.MAX_SKEW_S:.0f} seconds from your clock",
        f"for {2 * verifier.MAX_SKEW_S:.0f} seconds at most",
        f"remembers {verifier.REMEMBERED:,} hashes",
        f"signature check | {fair_queue.MAX_WAITING:,};",
        f"the newest {verification.MAX_SEALED_HELD:,} are kept",
        f"{held_datagrams.MAX_HELD:,} each of {held_datagrams.MAX_LOGS} logs,"
        f" for {held_datagrams.HOLD_S:.0f} seconds",
        f"believe it after {log_follower.BEHIND_S:.0f} seconds in which",
        f"After {held_datagrams.HOLD_S:.0f} seconds, go on",
    ):
        assert words in page, words
    assert (sequence.REPORT_WINDOW_S, key_refresh.UNKNOWN_S) == (1.0, (1.0, 60.0))  # in words
    assert "Without HTTPS, wait one second" in page
    assert "one a second; pauses double up to a minute" in page
    assert sealed_datagram.PAST_EPOCHS == 2
    assert "Keep the keys of the two epochs before" in PROTOCOL


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
