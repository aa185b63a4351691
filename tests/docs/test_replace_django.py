"""The page about an older estate: its certificates, its curl commands, its receiver, our server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.harness import PATIENCE_S
from tests.support.pages import Reader, reader

pytestmark = [pytest.mark.once, pytest.mark.network]

PAGE = "docs/replace-django.md"

# As pages about openssl have them: RSA, and of extensions only what says who is a client.
ESTATE = """
openssl req -x509 -newkey rsa:2048 -nodes -subj "/CN=Estate CA" -keyout ca.key -out ca.crt
issue() {
    openssl req -newkey rsa:2048 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -out "$1.crt" "${@:3}"
}
echo "extendedKeyUsage=clientAuth" > client.ext
issue server localhost
issue client valid_user@example.com -extfile client.ext
issue bad_client not_an_email -extfile client.ext
"""

# Joins nothing, verifies nothing, and knows one format.
RECEIVER = """
import socket, struct
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
receiver.bind(("", 6666))
receiver.settimeout(60)
print("ready", flush=True)
datagram, (_, source_port) = receiver.recvfrom(2048)
n = datagram[0]
email, (nanoseconds,) = datagram[1 : 1 + n], struct.unpack_from("!Q", datagram, 1 + n)
m = datagram[9 + n]
address, (port,) = datagram[10 + n : 10 + n + m], struct.unpack_from("!H", datagram, 10 + n + m)
print(source_port, email.decode(), address.decode(), len(datagram) == 12 + n + m)
"""


@pytest.fixture
def estate(tmp_path: Path) -> Iterator[Reader]:
    """A reader of the page in the folder with the certificates."""
    with reader(tmp_path) as owner:
        folder = tmp_path / "certificates"
        folder.mkdir()
        subprocess.run(
            ("bash", "-euc", ESTATE),
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        (folder / "receiver.py").write_text(RECEIVER)
        yield Reader(folder, owner.enter, owner.environment)


def test_an_estate_goes_on_unchanged(estate: Reader) -> None:
    """With the configuration of the page: every command of it, and the receiver."""
    look, start, *requests, issue = (block.commands for block in pages.commands(PAGE))
    text = [block.text for block in pages.blocks(PAGE) if block.language in ("", "json", "yaml")]
    certificate, configuration, serving, *answers, signed = text
    seen = [line.rstrip() for line in estate.types(look).splitlines()]
    assert seen == certificate.splitlines()
    (estate.here / "status.yaml").write_text(configuration)
    with estate.starts(start) as server, estate.starts("python receiver.py") as receiver:
        begun = server.out.wait_for(lambda line: "Serving on" in line, "Serving on")
        assert begun.startswith(serving.strip())
        receiver.out.wait_for(lambda line: line == "ready", "ready")
        assert len(requests) == len(answers) == 3
        for request, answer in zip(requests, answers, strict=True):
            said = estate.types(request.replace("curl", "curl --silent", 1))
            assert said.splitlines()[0] == answer.strip()
        assert receiver.wait() == 0
        assert receiver.out.wait_end().splitlines()[-1] == (
            "6666 valid_user@example.com 127.0.0.1 True"
        )
    assert "announcer.crt" in estate.types(issue)
    (estate.here / "status.yaml").write_text(configuration.partition("announce:")[0] + signed)
    with estate.starts(start) as server:
        begun = server.out.wait_for(lambda line: "Serving on" in line, "Serving on")
        assert "broadcast auto:6666 and multicast 239.255.66.66:6667" in begun
        assert "not signed" not in "".join(server.err.lines + server.out.lines)
