"""Podman in mount and network namespaces of its own, spoken to by docker-compose over its socket.

It needs no image registry, no systemd and no control groups: the base images are stand-ins made
from Debian's packages. Programs in it reach no other machine and change nothing of this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, ROOT, Lines, plain_environment, require, wait_until

HERE = Path(__file__).resolve().parent
BUILD_PATIENCE_S = 900.0  # it fetches some 100 MB of packages
PROGRAMS = ("podman", "crun", "mmdebstrap", "docker-compose", "nft", "nsenter")
DEBIAN = "podman crun netavark aardvark-dns nftables mmdebstrap docker-compose"
STAND_INS = {
    "docker.io/library/python:3.13-slim-trixie": ("stand_in_python.sh", []),
    "docker.io/library/postgres:17.12-trixie": (
        "stand_in_postgres.sh",
        [
            'ENTRYPOINT ["docker-entrypoint.sh"]',
            'CMD ["postgres"]',
            "VOLUME /var/lib/postgresql/data",
        ],
    ),
}
IMAGE = "tornado_status:dev"

_CGROUPS = "umount -R /sys/fs/cgroup 2>/dev/null || true; mount -t cgroup2 none /sys/fs/cgroup"

# A tree of version 2 control groups, since crun refuses a mixed one, and directories of its own for
# what podman keeps per machine. It ends when its input does.
_NAMESPACES = """
set -e
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
for directory in /run/netns /run/containers /run/libpod; do
    mkdir -p $directory
    mount -t tmpfs tmpfs $directory
done
ip link set lo up
podman system service --time=0 "unix://$1" </dev/null &
service=$!
# Podman leaves health checks to systemd.
while sleep 1; do
    for state in starting unhealthy; do
        for id in $(podman ps --quiet --filter health=$state 2>/dev/null); do
            podman healthcheck run $id >/dev/null 2>&1 || true
        done
    done
done </dev/null &
checks=$!
echo ready
cat >/dev/null
kill $checks $service
wait $service || true
"""


class Engine:
    """Podman with a state of its own in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "podman.sock"
        self.enter: tuple[str, ...] = ()
        self._configure()

    def _configure(self) -> None:
        (self.directory / "networks").mkdir(parents=True, exist_ok=True)
        containers = self.directory / "containers.conf"
        containers.write_text(
            '[containers]\ncgroups = "disabled"\n'
            'default_ulimits = ["nofile=20000:20000", "nproc=90000:90000"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            "exit_command_delay = 10\n"  # else what watched a command stays for five minutes
            '[network]\nfirewall_driver = "nftables"\n'
            f'network_config_dir = "{self.directory}/networks"\n'
        )
        storage = self.directory / "storage.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.directory}/root"\n'
            f'runroot = "{self.directory}/run"\n'
        )
        registries = self.directory / "registries.conf"
        registries.write_text(
            'unqualified-search-registries = ["docker.io"]\nshort-name-mode = "permissive"\n'
        )
        self.environment = {
            **plain_environment(),
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_REGISTRIES_CONF": str(registries),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
            "DOCKER_HOST": f"unix://{self.socket}",
        }

    def run(self, *command: str | Path, patience_s: float = PATIENCE_S, check: bool = True) -> str:
        """Run a command for this engine; return what it said."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-5000:]}"
        return done.stdout

    def make_images(self) -> None:
        """Make the stand-ins, where they are missing, and build the project's image on them."""
        for name, (script, changes) in STAND_INS.items():
            exists = subprocess.run(
                ["podman", "image", "exists", name], env=self.environment, check=False
            )
            if exists.returncode != 0:
                tar = self.directory / "stand_in.tar"
                self.run(HERE / script, tar, patience_s=BUILD_PATIENCE_S)
                options = [word for change in changes for word in ("--change", change)]
                self.run("podman", "import", "--quiet", *options, tar, name, patience_s=300)
                tar.unlink()
        # The host's network, for the packages. In Docker's format, since the other has no health
        # checks.
        build = ("podman", "build", "--pull=never", "--network=host", "--format=docker")
        self.run(
            *("unshare", "--mount", "--propagation", "private", "sh", "-ec"),
            f'{_CGROUPS}; exec "$@"',
            *("sh", *build, "--tag", IMAGE, ROOT),
            patience_s=BUILD_PATIENCE_S,
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Serve docker-compose; nothing is left running afterwards."""
        command = [
            *("unshare", "--mount", "--net", "--propagation", "private"),
            *("bash", "-c", _NAMESPACES, "engine", str(self.socket)),
        ]
        with subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as holder:
            said = Lines(holder.stdout)
            try:
                said.wait_for(lambda line: line == "ready", "ready")
                wait_until(self.socket.exists, "podman's socket")
                self.enter = ("nsenter", f"--net=/proc/{holder.pid}/ns/net", "--")
                yield
            finally:
                assert holder.stdin is not None
                with contextlib.suppress(Exception):  # first what failed in the test is told
                    self.compose("down", "--volumes", "--timeout", "2")
                holder.stdin.close()
                holder.wait(PATIENCE_S)
                said.wait_end()

    def compose(self, *arguments: str, patience_s: float = PATIENCE_S, check: bool = True) -> str:
        """Run docker-compose with the project's file; return what it said."""
        command = ("docker-compose", "--ansi", "never", "--env-file", os.devnull, *arguments)
        return self.run(*command, patience_s=patience_s, check=check)

    def output_of(self, *arguments: str) -> bytes:
        """Return exactly what a docker-compose command writes to its standard output."""
        return subprocess.run(
            ["docker-compose", "--env-file", os.devnull, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=True,
        ).stdout

    def image_size(self) -> int:
        """Return the size of the project's image in bytes."""
        [image] = json.loads(self.run("podman", "image", "inspect", IMAGE))
        size: int = image["Size"]
        return size


def need_engine() -> None:
    """Skip where containers cannot run; in CI a missing program is a failure.

    No installation mends what the machine itself forbids: that stays a skip everywhere.
    """
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    how = f"as root: apt-get install --no-install-recommends {DEBIAN}"
    require(", ".join(missing) or "programs", not missing, how)
    unshare = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", _CGROUPS]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs root and version 2 control groups: {done.stderr.strip()}")
