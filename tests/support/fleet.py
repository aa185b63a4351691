"""Three servers behind HAProxy over one PostgreSQL, with clients and a listener, and a judge.

The hosts are network namespaces on a bridge, which is in one of its own: nothing of the machine's
network is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from certs_gen.authority import Authority
from certs_gen.cli import main as certs_gen
from tests.support.harness import (
    GROUP,
    PATIENCE_S,
    ROOT,
    Lines,
    Server,
    StartServer,
    plain_environment,
    require,
    rows,
    wait_until,
)
from tests.support.hosts import ip
from tests.support.proxies import program, running

SERVERS = ("10.78.0.11", "10.78.0.12", "10.78.0.13")
PROXY_IP, CLIENT_IP, LISTENER_IP = "10.78.0.5", "10.78.0.101", "10.78.0.9"
PORT, ANNOUNCE_PORT = 8443, 6667
CLIENTS = [f"load{number}" for number in range(6)]
PROGRESS = 150  # check-ins between two faults

Host = tuple[str, ...]


@contextlib.contextmanager
def fleet_hosts() -> Iterator[dict[str, Host]]:
    """Yield, by address, an argument list that runs what follows it there."""
    how = "run as root, with iproute2 installed and the right to make network namespaces"
    require("network namespaces", os.geteuid() == 0 and shutil.which("ip") is not None, how)
    prefix = f"tornado_status_{os.getpid()}"
    switch = f"{prefix}_switch"
    found: dict[str, Host] = {}
    with contextlib.ExitStack() as made:
        try:
            ip("netns", "add", switch)
            made.callback(ip, "netns", "delete", switch)
            # mcast_snooping 0: a bridge that floods multicast, as a plain switch does.
            ip("-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            ip("-n", switch, "link", "set", "br0", "up")
            for number, address in enumerate([*SERVERS, PROXY_IP, CLIENT_IP, LISTENER_IP]):
                name = f"{prefix}_{number}"
                ip("netns", "add", name)
                made.callback(ip, "netns", "delete", name)
                peer = ("peer", "name", f"port{number}", "netns", switch)
                ip("-n", name, "link", "add", "eth0", "type", "veth", *peer)
                ip("-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
                ip("-n", name, "address", "add", f"{address}/24", "broadcast", "+", "dev", "eth0")
                for link in ("lo", "eth0"):
                    ip("-n", name, "link", "set", link, "up")
                found[address] = ("ip", "netns", "exec", name)
        except OSError as error:
            require("network namespaces", False, f"{how} ({error})")
        yield found


def fleet_certs(certs: Path, directory: Path) -> Path:
    """Return a set whose server certificate names the proxy, too, with the clients'."""
    shutil.copytree(certs, directory)
    names = ["--name", "localhost", "--ip", "127.0.0.1", "--ip", PROXY_IP]
    assert certs_gen(["server", *names, "--out", str(directory), "--force"]) == 0
    authority = Authority.load(directory)
    for name in CLIENTS:
        credential = authority.issue_client(f"{name}@example.com")
        (directory / f"{name}.crt").write_bytes(credential.certificate_pem())
        (directory / f"{name}.key").write_bytes(credential.key_pem())
    return directory


@contextlib.contextmanager
def process(host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python module on a host; ended, whatever happens."""
    running = subprocess.Popen(
        [*host, sys.executable, "-W", "error", "-m", *arguments],
        cwd=ROOT,
        env=plain_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(PATIENCE_S)
        for stream in (running.stdin, running.stdout, running.stderr):
            with contextlib.suppress(ValueError, OSError):
                if stream is not None:
                    stream.close()


def missing(acknowledged: Sequence[Sequence[Any]], recorded: Sequence[tuple[Any, ...]]) -> int:
    """How many of the acknowledged check-ins are not in the log, by who and from which port."""
    answered = Counter((f"{name}@example.com", port) for name, port in acknowledged)
    answered.subtract(Counter((email, port) for _, email, _, port in recorded))
    return sum(count for count in answered.values() if count > 0)


class Fleet:
    """The servers, and what clients and a listener saw of them."""

    def __init__(
        self,
        hosts: dict[str, Host],
        certs: Path,
        database_url: str,
        start_server: StartServer,
        directory: Path,
    ) -> None:
        self._hosts = hosts
        self._certs = certs
        self._url = database_url
        self._start_server = start_server
        self._directory = directory
        self._steps = 0
        self._load: subprocess.Popen[str] | None = None
        self._shown: Lines | None = None
        self._said: Lines | None = None

    def start(self, address: str, code: Path = ROOT, *, wait: bool = True) -> Server:
        """Start a server of the version that is in the directory `code`."""
        return self._start_server(
            prefix=(*self._hosts[address], "env", f"--chdir={code}"),
            wait=wait,
            server={"host": address, "port": PORT},
            ingress={"proxy_protocol": True, "trusted_proxies": [PROXY_IP]},
            announce={
                "signing_key": str(self._certs / "announcer.key"),
                "heartbeat_s": 0.5,
                "targets": [
                    {
                        "kind": "multicast",
                        "address": GROUP,
                        "port": ANNOUNCE_PORT,
                        "interfaces": ["eth0"],
                    }
                ],
            },
        )

    def recorded(self) -> int:
        count: int = rows(self._url, "SELECT count(*) FROM check_in")[0][0]
        return count

    def go_on(self, what: str) -> None:
        """Wait for check-ins, many enough to go to every server."""
        self._steps += 1
        enough = self.recorded() + PROGRESS
        wait_until(lambda: self.recorded() >= enough, f"check-ins {what}")

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """Run deploy/haproxy.cfg, a listener, and clients behind it. Ends with `judge`."""
        configuration = (ROOT / "deploy" / "haproxy.cfg").read_text()
        for number, address in zip((11, 12, 13), SERVERS, strict=True):
            assert f"10.0.0.{number}:{PORT}" in configuration
            configuration = configuration.replace(f"10.0.0.{number}:", f"{address}:")
        path = self._directory / "haproxy.cfg"
        path.write_text(configuration)
        url = f"https://{PROXY_IP}:{PORT}"
        certs = self._certs
        listener_options = [
            *("--interface", "eth0", "--port", str(ANNOUNCE_PORT), "--url", url),
            *("--cert", str(certs / "operator.crt"), "--key", str(certs / "operator.key")),
            *("--ca", str(certs / "ca.crt"), "--from", "start", "--format", "json"),
        ]
        proxy = [program("haproxy"), "-db", "-f", str(path)]
        load = ("tests.support.check_in_load", url, str(certs), *CLIENTS)
        with (
            running(proxy, None, prefix=self._hosts[PROXY_IP]),
            process(self._hosts[LISTENER_IP], "listeners", *listener_options) as listener,
            process(self._hosts[CLIENT_IP], *load) as self._load,
        ):
            self._shown, self._said = Lines(listener.stdout), Lines(listener.stderr)
            yield

    def judge(self) -> None:
        """End the load: nothing acknowledged is lost, one gapless order, and all of it heard."""
        assert self._load is not None
        assert self._shown is not None
        assert self._said is not None
        output, errors = self._load.communicate(timeout=PATIENCE_S)
        assert not errors
        said_by_load = json.loads(output)
        log = rows(
            self._url,
            "SELECT seq, email, host(client_ip::inet), client_port FROM check_in ORDER BY seq",
        )
        # Complete means up to the last one, in order.
        self._shown.wait_for(lambda line: f'"seq":{log[-1][0]},' in line, "the last check-in")
        heard = [json.loads(line) for line in self._shown.lines]

        acknowledged = said_by_load["acknowledged"]
        assert len(acknowledged) >= self._steps * PROGRESS // 2
        assert said_by_load["failures"]  # the faults were felt
        assert missing(acknowledged, log) == 0
        assert missing([*acknowledged, acknowledged[0]] * 2, log) > 0  # it would have been seen
        assert [seq for seq, *_ in log] == list(range(1, len(log) + 1))
        assert {client_ip for _, _, client_ip, _ in log} == {CLIENT_IP}
        updates = [(u["seq"], u["email"], u["client_ip"], u["client_port"]) for u in heard]
        assert updates == log, self._said.lines
