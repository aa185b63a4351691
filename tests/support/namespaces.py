"""Programs in a network of their own: the shipped ports are free, and no other hears them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.harness import (
    LOOPBACK,
    PATIENCE_S,
    ROOT,
    Lines,
    Server,
    plain_environment,
    require,
)


@contextlib.contextmanager
def network_of_its_own(address: str | None = None) -> Iterator[tuple[str, ...]]:
    """Yield the command that enters a new network: loopback, and an eth0 that has `address`."""
    script = "ip link set lo up"
    if address is not None:
        script += (
            " && ip link add eth0 type veth peer name peer0"
            f" && ip address add {address} broadcast + dev eth0"
            " && ip link set peer0 up && ip link set eth0 up"
        )
    script += " && echo ready && exec cat"
    root = os.geteuid() == 0
    unshare = ["unshare", "--net", *([] if root else ["--user", "--map-root-user"])]
    with subprocess.Popen(
        [*unshare, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:  # it ends when its input does
        assert holder.stdout is not None
        require(
            "network namespaces",
            holder.stdout.readline() == "ready\n",
            "run the tests as root, with iproute2 and util-linux",
        )
        if root:
            yield "nsenter", f"--net=/proc/{holder.pid}/ns/net"
        else:
            yield (
                *("nsenter", "--user", "--preserve-credentials", "--net"),
                *("--target", str(holder.pid)),
            )


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    out: Lines
    err: Lines

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def running(command: list[str], cwd: Path, environment: Mapping[str, str]) -> Iterator[Running]:
    """Run a program, told to end afterwards if it has not ended by itself."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program = Running(process, Lines(process.stdout), Lines(process.stderr))
    try:
        yield program
    finally:
        process.terminate()
        program.wait()
        program.out.wait_end()
        program.err.wait_end()


def environment_for_python() -> dict[str, str]:
    return {**plain_environment(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def in_python(command: list[str]) -> list[str]:
    """Return a command of the image as it runs here."""
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


@contextlib.contextmanager
def names_without_an_answer(directory: Path) -> Iterator[tuple[str, ...]]:
    """Yield the command that enters a loopback network whose name server never says a word.

    Nothing but its names fails there. The C library would wait for it for minutes.
    """
    configuration = directory / "resolv.conf"
    configuration.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    require("root, for a name server", os.geteuid() == 0, "run the tests as root")
    mute = (
        "import socket, sys; sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "sock.bind(('127.0.0.1', 53)); print('ready', flush=True); sys.stdin.read()"
    )
    script = f"ip link set lo up && mount --bind {configuration} /etc/resolv.conf && exec "
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-c", f'{script} "$0" -c "$1"', sys.executable, mute],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:  # it ends when its input does
        assert holder.stdout is not None
        ready = holder.stdout.readline() == "ready\n"
        require("network and mount namespaces", ready, "run the tests as root")
        net, mount = (f"/proc/{holder.pid}/ns/{kind}" for kind in ("net", "mnt"))
        yield "nsenter", f"--net={net}", f"--mount={mount}", f"--wd={ROOT}"


def check_in_from(enter: tuple[str, ...], server: Server) -> str:
    """Check in, with the command that enters the server's network; return the status."""
    files = {"--cacert": "ca.crt", "--cert": "client.crt", "--key": "client.key"}
    options = [part for name, file in files.items() for part in (name, str(server.certs / file))]
    url = f"https://{LOOPBACK}:{server.port}/api/client"
    wanted = ("--output", os.devnull, "--write-out", "%{http_code}")
    done = subprocess.run(
        [*enter, "curl", "-sS", "--request", "POST", *options, *wanted, url],
        timeout=PATIENCE_S,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout
