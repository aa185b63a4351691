"""A machine for the tests: systemd as PID 1 of namespaces of its own, over a root of its own.

Its /usr is this machine's, read-only; everything else is in memory. It has a loopback interface and
no other, its own control groups, and can change neither this machine's kernel settings nor clock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_S, Lines, require, wait_until

SYSTEMD = Path("/usr/lib/systemd/systemd")
DEBIAN = "systemd dbus util-linux iproute2 curl openssl"
BOOT_PATIENCE_S = 180.0

# Runs in a mount namespace. Version 2 control groups, whatever is mounted here: one for the
# machine, removed at its end.
_OUTER = """
set -eu
directory=$1 groups=$1/groups
mkdir -p "$groups" "$directory/root"
mount -t cgroup2 none "$groups"
group=$groups/tornado_status_tests_$$
mkdir "$group"
code=0
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec unshare --cgroup --mount --pid --fork --kill-child --net --uts --ipc \
        --propagation private bash -c "$2" machine "$directory"
) || code=$?
# What was killed with its PID 1 may take a moment to be gone.
for _ in $(seq 100); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
exit $code
"""

# Becomes PID 1. Of /etc there is what a bare Debian has in it, so that nothing else is started.
_INNER = r"""
set -eu
root=$1/root
umount "$1/groups"
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system var proc sys dev run root opt home srv old
mkdir -m 1777 tmp
for name in bin sbin lib lib64; do
    [ ! -L "/$name" ] || cp -P "/$name" "$name"
done
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in passwd group shadow gshadow nsswitch.conf login.defs default ld.so.cache ld.so.conf \
    ld.so.conf.d pam.d security dbus-1 ssl alternatives python3* debian_version; do
    [ ! -e "/etc/$name" ] || cp -a "/etc/$name" etc/
done
cp -L /etc/os-release etc/
echo 6d616368696e652066206f7220746573 >etc/machine-id
echo machine >etc/hostname
hostname machine
echo "127.0.0.1 localhost machine" >etc/hosts
ln -s /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ln -s /proc/self/fd dev/fd
for number in 0 1 2; do
    ln -s "/proc/self/fd/$number" "dev/$(echo stdin stdout stderr | cut -d ' ' -f $((number + 1)))"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
ip link set lo up
read -r pid _ </proc/self/stat
echo "pid $pid"
pivot_root . old
cd /
umount -l /old
rmdir /old
exec env -i container=tests PATH=/usr/sbin:/usr/bin \
    setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio \
    /usr/lib/systemd/systemd --show-status=no </dev/null
"""


@dataclass(frozen=True)
class Machine:
    """A running machine. `pid` is its PID 1, as this machine numbers it; `root` its file system."""

    pid: int

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    def run(
        self,
        *command: str | Path,
        cwd: str = "/root",
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root; standard output and error come together in `stdout`."""
        done = subprocess.run(
            [
                *("nsenter", "--target", str(self.pid), "--all", "--wd=/"),
                *("env", "-i", f"--chdir={cwd}", "PATH=/usr/local/bin:/usr/sbin:/usr/bin"),
                *("HOME=/root", "LANG=C.UTF-8"),
                *(f"{name}={value}" for name, value in (environment or {}).items()),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-5000:]}"
        return done

    def put(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file of it."""
        there = self.root / path.removeprefix("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(content)
        there.chmod(mode)

    def shows(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()


def need_machine() -> None:
    """Skip where systemd cannot be PID 1; in CI a missing program is a failure.

    No installation mends what this machine itself forbids: that stays a skip everywhere.
    """
    programs = [name for name in ("unshare", "nsenter", "setpriv", "ip") if not shutil.which(name)]
    there = SYSTEMD.exists() and not programs
    require("systemd", there, f"apt-get install --no-install-recommends {DEBIAN}")
    if os.geteuid() != 0:
        pytest.skip("needs root: a machine of its own has namespaces and control groups")
    probe = (
        "set -e; directory=$(mktemp -d); trap 'umount $directory; rmdir $directory' EXIT;"
        " mount -t cgroup2 none $directory; group=$directory/tornado_status_tests_$$;"
        " mkdir $group; rmdir $group; unshare --cgroup --pid --fork --net --uts --ipc true"
    )
    unshare = ["unshare", "--mount", "--propagation", "private", "bash", "-c", probe]
    done = subprocess.run(unshare, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs namespaces and version 2 control groups: {done.stderr.strip()}")


@contextlib.contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Boot a machine and yield it once systemd has started everything; halt it at the end."""
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("bash", "-c", _OUTER, "machine", str(directory), _INNER),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = Lines(process.stdout)
    pid = 0
    try:
        pid = int(said.wait_for(lambda line: line.startswith("pid "), "its PID 1").split()[1])
        booted = Machine(pid)

        def is_up() -> bool:
            assert process.poll() is None, said.wait_end()
            state = booted.run("systemctl", "is-system-running", check=False).stdout.strip()
            assert state != "degraded", booted.run("systemctl", "--failed").stdout
            return state == "running"

        wait_until(is_up, "systemd to have started everything")
        yield booted
    finally:
        if pid and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # a test has just ended it
                os.kill(pid, signal.SIGRTMIN + 3)  # halt, as systemd(1) has it
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            if pid:
                os.kill(pid, signal.SIGKILL)  # and all that is in its namespace
            process.wait(PATIENCE_S)
        said.wait_end()
